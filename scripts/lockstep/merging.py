"""Trained output → one model in bfloat16, shard by shard over safetensors, with exact arithmetic.

A QLoRA adapter was trained on weights that went through 4 bits and back. Added to the original
weights instead, as is usual, it is another model than the one that was trained.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lockstep import manifest, models
from lockstep.config import Quantization
from lockstep.errors import UserError
from lockstep.updates import Adapter

INDEX = "model.safetensors.index.json"
DTYPE = torch.bfloat16  # of every merged model


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
    index = folder / INDEX
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        yield from (folder / name for name in sorted(names))
    else:
        yield from sorted(folder.glob("*.safetensors"))


def tensors_of(folder: Path) -> dict[str, Path]:
    """The shard of each tensor, by the tensor's name."""
    found: dict[str, Path] = {}
    for shard in shards(folder):
        with safe_open(shard, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), shard)
    return found


def merged(base: Path, adapter: Adapter, dequantizer: Dequantizer | None) -> Iterator[tuple[str, str, Tensor]]:
    """(shard, name, tensor) of the merged model, one after the other, not yet cast to its dtype.

    Args:
        adapter: an empty one leaves the base as it is.
        dequantizer: gives the 4-bit weights' place to their dequantized ones; None keeps the
            original weights.

    Raises:
        UserError: the adapter changes a tensor that the base lacks, or does not fit it.
    """
    left = adapter.names
    quantized_left = set(dequantizer.hashes) if dequantizer else set()
    parted = _parted(base, adapter)
    for shard in shards(base):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                weight = file.get_tensor(name)
                if dequantizer:
                    weight = dequantizer(name, weight)
                    quantized_left.discard(name)
                for target in [name, *parted.get(name, ())]:
                    yield shard.name, target, adapter.apply(target, weight)
                    left.discard(target)
    for missing in (left, quantized_left):
        if missing:
            raise UserError(f"the adapter belongs to another base: {min(missing)} is not in {base.name}")


def _parted(base: Path, adapter: Adapter) -> dict[str, list[str]]:
    """Tied tensors that the adapter pulls apart: those that the base's files lack, by the one there.

    PEFT trains a copy of the head or of the embedding, and the other one stays as it was: a head
    does not follow an embedding of modules_to_save.
    """
    there = tensors_of(base)
    found: dict[str, list[str]] = {}
    for pair in models.tied_weights(base).items():
        kept, lacking = sorted(pair, key=lambda name: name not in there)
        if lacking not in there and any(name in adapter.names or adapter.saves(name) for name in pair):
            found.setdefault(kept, []).append(lacking)
    return found


def write_weights(base: Path, out: Path, adapter: Adapter, dequantizer: Dequantizer | None) -> None:
    """The merged model's shards and their index, one shard in memory at a time; arguments as for `merged`.

    Raises:
        UserError: as `merged` does; or values are not finite, or do not read back as they were written.
    """
    out.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    size = 0
    for shard, members in groupby(merged(base, adapter, dequantizer), key=itemgetter(0)):
        tensors: dict[str, Tensor] = {}
        for _, name, tensor in members:
            tensors[name] = tensor.to(DTYPE).contiguous()
            if not torch.isfinite(tensors[name]).all():
                raise UserError(f"{name} would hold values that are not finite: what was trained is damaged")
        save_file(tensors, out / shard, metadata={"format": "pt"})
        _compare_with_disk(out / shard, tensors)
        weight_map |= dict.fromkeys(tensors, shard)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if (base / INDEX).exists():
        manifest.write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


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
    """Everything but the weights, which must be there: config, generation config, tokenizer, template, contract.

    The end-of-turn token that training supervised becomes a stop token of config and generation
    config, so that every server stops at it. A head that is no longer the embedding is untied.
    """
    from lockstep import contract, template

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
    if not _still_tied(base, out):
        config["tie_word_embeddings"] = False
    manifest.write_json(out / "config.json", config)
    manifest.write_json(out / "generation_config.json", generation | {"eos_token_id": eos})


def _still_tied(base: Path, out: Path) -> bool:
    there = tensors_of(out)

    def read(name: str) -> Tensor:
        with safe_open(there[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    pairs = [pair for pair in models.tied_weights(base).items() if there.keys() >= set(pair)]
    return all(torch.equal(read(one), read(other)) for one, other in pairs)


def _ids(config: dict[str, Any]) -> list[int]:
    ids = config.get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
