"""The 4-bit weights that training computed with, made again from the original ones and proved by their hashes."""

from pathlib import Path

import torch
from torch import Tensor

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model import experts, networks
from lockstep.settings.schema import Quantization


def round_trip(weight: Tensor, dtype: torch.dtype, quantization: Quantization, on: str) -> Tensor:
    """A weight as training computes with it, quantized and dequantized; a stack of experts one by one. On the CPU."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    if weight.ndim == 3:
        return torch.stack([experts.round_trip(matrix.to(on, dtype)[None], quantization)[0].cpu() for matrix in weight])
    packed, state = quantize_4bit(
        weight.to(on, dtype).contiguous(),
        compress_statistics=quantization.bnb_4bit_use_double_quant,
        quant_type=quantization.bnb_4bit_quant_type,
    )
    restored: Tensor = dequantize_4bit(packed, state)
    return restored.to(dtype).cpu()


def trained_dtype(adapter: Path) -> torch.dtype:
    """The compute dtype that an adapter was trained with."""
    record = atomic.read_json(adapter / filenames.BASE_TENSORS)
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[record["dtype"]]


class Dequantizer:
    """Makes the weights that training computed with, and proves each by its hash.

    Args:
        adapter: an adapter's folder; its base_tensors.json holds hashes and dtype.
        strict: whether a tensor that this device makes otherwise is an error.

    Attributes:
        others: names of those tensors so far, where it is none.
    """

    def __init__(self, adapter: Path, quantization: Quantization, strict: bool = True) -> None:
        record = atomic.read_json(adapter / filenames.BASE_TENSORS)
        self.hashes: dict[str, str] = record["dequantized"]
        self.dtype = trained_dtype(adapter)
        self.quantization, self.on = quantization, networks.device()
        self.strict, self.others = strict, set[str]()

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The tensor that training used. Raises UserError where this machine makes another and `strict` is set."""
        if name not in self.hashes:
            return weight
        weight = round_trip(weight, self.dtype, self.quantization, self.on)
        if networks.tensor_sha256(weight) == self.hashes[name]:
            return weight
        if self.strict:
            raise UserError(
                f"{name}, quantized on this machine, is not the tensor that the adapter was trained "
                f"on: merge on the machine that trained, or force --merge.strategy original"
            )
        self.others.add(name)
        return weight
