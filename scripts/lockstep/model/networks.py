"""Networks: which device and dtype, how a base is loaded, and what its 4-bit layers compute with."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lockstep.settings.schema import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def device() -> str:
    """cuda, mps or cpu: the best that is here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def compute_dtype(setting: str, on: str) -> torch.dtype:
    """The dtype of matrix products.

    Args:
        setting: a dtype's name, or auto: bfloat16 where the device computes with it; otherwise
            float16 on CUDA and float32 elsewhere.
        on: a device, as `device` names it.
    """
    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(setting, torch.float32)
    if on == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if on == "cpu":
        able = torch.cpu.get_capabilities()
        has_bf16 = able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16")
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as configs and manifests write it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def longest(config: Any) -> int | None:
    """The positions that a model has; None where its config sets no bound."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions


def load(folder: Path, dtype: torch.dtype, on: str, quantization: Quantization | None = None) -> "PreTrainedModel":
    """A causal language model from a local folder of safetensors.

    Args:
        dtype: of the weights that are not quantized, and of 4-bit matrix products.
        on: the device.
        quantization: 4-bit settings, or None for plain weights.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    four_bit = quantization and BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **quantization.model_dump()
    )
    network = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": on},
        quantization_config=four_bit,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    network.config.use_cache = False
    for _, layer in linear4bit(network):
        # On CPUs with AVX-512-BF16, bitsandbytes 0.50 repacks such a layer's weight in place in
        # its first evaluation pass, and every later gradient is wrong, without an error.
        layer.support_avx512bf16_for_cpu = False
    return network


def tied_weights(folder: Path) -> dict[str, str]:
    """Tied tensors, each with the name of the one whose weights it shares: head → embedding."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):  # names, no weights
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return dict(network.all_tied_weights_keys)


def linear4bit(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every 4-bit layer."""
    import bitsandbytes

    for name, layer in network.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            yield name, layer


def dequantize(layer: Any) -> Tensor:
    """The weight [out, in] that a 4-bit layer computes with, in its compute dtype."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(layer.compute_dtype)


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, in row order."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()
