"""base + adapter → one model, shard by shard over safetensors, with exact LoRA arithmetic.

A QLoRA adapter was trained on weights that went through 4 bits and back. Added to the original
weights instead, as is usual, it is another model than the one that was trained.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lockstep import manifest, models
from lockstep.config import Quantization
from lockstep.errors import UserError

PREFIX = "base_model.model."
DTYPE = torch.bfloat16  # of every merged model


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one weight [out, in]: scale · B [out, r] · A [r, in]."""

    a: Tensor
    b: Tensor
    scale: float

    def add_to(self, weight: Tensor) -> Tensor:
        """The sum in float32."""
        return weight.float() + self.scale * (self.b.float() @ self.a.float())


def read_adapter(folder: Path) -> dict[str, Delta]:
    """The adapter's deltas by the name of the base tensor that each changes.

    Raises:
        UserError: tensors that are no plain LoRA pair, or an adapter that changes nothing.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    unsupported = [
        key for key in ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices") if config.get(key)
    ]
    if unsupported or config.get("bias", "none") != "none":
        raise UserError(f"the adapter uses {', '.join(unsupported) or 'bias'}, which this merge does not know")
    rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    modules = {name.rsplit(".lora_", 1)[0] for name in tensors}
    deltas = {}
    for module in sorted(modules):
        try:
            a, b = tensors.pop(f"{module}.lora_A.weight"), tensors.pop(f"{module}.lora_B.weight")
        except KeyError as error:
            raise UserError(f"the adapter is incomplete: {error.args[0]} is missing") from error
        if not (b.any() and a.any()):
            raise UserError(f"the adapter has no effect on {module}: it was not trained, or damaged")
        deltas[module.removeprefix(PREFIX) + ".weight"] = Delta(a, b, config["lora_alpha"] / rank)
    if tensors:
        raise UserError(f"the adapter holds {min(tensors)}, which this merge does not know")
    return deltas


def round_trip(weight: Tensor, dtype: torch.dtype, quantization: Quantization, on: str) -> Tensor:
    """A weight as a 4-bit layer computes with it: quantized and dequantized, on the CPU."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.to(on, dtype).contiguous(),
        compress_statistics=quantization.bnb_4bit_use_double_quant,
        quant_type=quantization.bnb_4bit_quant_type,
    )
    restored: Tensor = dequantize_4bit(packed, state)
    return restored.to(dtype).cpu()


def trained_dtype(adapter: Path) -> torch.dtype:
    """The compute dtype that an adapter was trained with."""
    record = json.loads((adapter / "base_tensors.json").read_text(encoding="utf-8"))
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[record["dtype"]]


class Dequantizer:
    """Rebuilds the weights that training computed with, and proves each by its hash.

    Args:
        adapter: an adapter's folder; its base_tensors.json holds hashes and dtype.
    """

    def __init__(self, adapter: Path, quantization: Quantization) -> None:
        record = json.loads((adapter / "base_tensors.json").read_text(encoding="utf-8"))
        self.hashes: dict[str, str] = record["dequantized"]
        self.dtype = trained_dtype(adapter)
        self.quantization, self.on = quantization, models.device()

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The tensor that training used. Raises UserError where this machine makes another."""
        if name not in self.hashes:
            return weight
        weight = round_trip(weight, self.dtype, self.quantization, self.on)
        if models.tensor_sha256(weight) != self.hashes[name]:
            raise UserError(
                f"{name}, quantized on this machine, is not the tensor that the adapter was trained "
                f"on: merge on the machine that trained, or force --merge.strategy original"
            )
        return weight


def shards(folder: Path) -> Iterator[Path]:
    """The model's safetensors files, those of its index or the only one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        yield from (folder / name for name in sorted(names))
    else:
        yield from sorted(folder.glob("*.safetensors"))


def write_weights(base: Path, out: Path, deltas: dict[str, Delta], dequantizer: Dequantizer | None) -> None:
    """Copy a base's weights in bfloat16, with the deltas added, one shard in memory at a time.

    Args:
        dequantizer: gives the 4-bit weights' place to their dequantized ones; None keeps the
            original weights.

    Raises:
        UserError: the adapter changes a tensor that the base lacks, or of another shape; or what
            was read back from disk is not what was written.
    """
    left = set(deltas)
    quantized_left = set(dequantizer.hashes) if dequantizer else set()
    out.mkdir(parents=True, exist_ok=True)
    for shard in shards(base):
        tensors: dict[str, Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                weight = file.get_tensor(name)
                if dequantizer:
                    weight = dequantizer(name, weight)
                    quantized_left.discard(name)
                if name in deltas:
                    weight = _add(name, weight, deltas[name])
                    left.discard(name)
                tensors[name] = weight.to(DTYPE).contiguous()
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
        _compare_with_disk(out / shard.name, tensors)
    for missing in (left, quantized_left):
        if missing:
            raise UserError(f"the adapter belongs to another base: {min(missing)} is not in {base.name}")


def _add(name: str, weight: Tensor, delta: Delta) -> Tensor:
    if weight.shape != (delta.b.shape[0], delta.a.shape[1]):
        raise UserError(f"the adapter belongs to another base: {name} has shape {tuple(weight.shape)} there")
    total = delta.add_to(weight)
    if not torch.isfinite(total).all():
        raise UserError(f"{name} would hold values that are not finite: the adapter is damaged")
    return total


def _compare_with_disk(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        with safe_open(file, framework="pt") as written:
            same = set(written.keys()) == set(tensors) and all(
                torch.equal(written.get_tensor(name), tensor) for name, tensor in tensors.items()
            )
    except SafetensorError:
        same = False
    if not same:
        raise UserError(f"{file.name} does not read back as it was written: check the disk, run again")


def write_rest(base: Path, adapter: Path, out: Path) -> None:
    """Everything but the weights: config, generation config, tokenizer, template, contract, shard index.

    The end-of-turn token that training supervised becomes a stop token of config and generation
    config, so that every server stops at it.
    """
    from lockstep import contract, template

    index = base / "model.safetensors.index.json"
    if index.exists():
        (out / index.name).write_bytes(index.read_bytes())
    text = (adapter / template.FILE).read_text(encoding="utf-8")
    chat = template.load(adapter, text)
    chat.tokenizer.save_pretrained(out)
    (out / contract.FILE).write_bytes((adapter / contract.FILE).read_bytes())
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    file = base / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    stops = [chat.end_of_turn, chat.tokenizer.eos_token_id, *_ids(generation), *_ids(config)]
    unique = list(dict.fromkeys(stop for stop in stops if stop is not None))
    eos: Any = unique if len(unique) > 1 else unique[0]
    config |= {"eos_token_id": eos, "dtype": str(DTYPE).split(".")[-1]}
    config.pop("torch_dtype", None)
    manifest.write_json(out / "config.json", config)
    manifest.write_json(out / "generation_config.json", generation | {"eos_token_id": eos})


def _ids(config: dict[str, Any]) -> list[int]:
    ids = config.get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
