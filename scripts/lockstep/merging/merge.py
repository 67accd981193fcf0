"""Trained output → one model in bfloat16, shard by shard over safetensors, with exact arithmetic.

A QLoRA adapter was trained on weights that went through 4 bits and back. Added to the original
weights instead, as is usual, it is another model than the one that was trained.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.merging import safetensors_stream
from lockstep.model import networks
from lockstep.model.adapter_delta import EMBEDDINGS, AdapterDelta
from lockstep.settings.schema import Quantization

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
    record = atomic.read_json(adapter / filenames.BASE_TENSORS)
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[record["dtype"]]


class Dequantizer:
    """Rebuilds the weights that training computed with, and proves each by its hash.

    Args:
        adapter: an adapter's folder; its base_tensors.json holds hashes and dtype.
    """

    def __init__(self, adapter: Path, quantization: Quantization) -> None:
        record = atomic.read_json(adapter / filenames.BASE_TENSORS)
        self.hashes: dict[str, str] = record["dequantized"]
        self.dtype = trained_dtype(adapter)
        self.quantization, self.on = quantization, networks.device()

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The tensor that training used. Raises UserError where this machine makes another."""
        if name not in self.hashes:
            return weight
        weight = round_trip(weight, self.dtype, self.quantization, self.on)
        if networks.tensor_sha256(weight) != self.hashes[name]:
            raise UserError(
                f"{name}, quantized on this machine, is not the tensor that the adapter was trained "
                f"on: merge on the machine that trained, or force --merge.strategy original"
            )
        return weight


@dataclass(frozen=True)
class MergePlan:
    """Which tensors a merge writes, known from names and shapes alone.

    Attributes:
        adapter: what is left of it where tied tensors stay one.
        files: for each file of the base, the tensors to write there, each with the base's tensor that it is made of.
        shapes: of all that is written.
    """

    adapter: AdapterDelta
    files: dict[Path, dict[str, str]]
    shapes: dict[str, tuple[int, ...]]

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the merged model knows; None where its embedding has a name of its own."""
        return next((shape[0] for name, shape in self.shapes.items() if name.endswith(EMBEDDINGS)), None)


def plan(base: Path, adapter: AdapterDelta) -> MergePlan:
    """The merge of an adapter, an empty one too, into a base.

    Raises:
        UserError: the adapter changes a tensor that the base lacks, does not fit it, or lacks one itself.
    """
    there = {file: safetensors_stream.shapes_of(file) for file in safetensors_stream.files(base)}
    shapes = {name: shape for some in there.values() for name, shape in some.items()}
    apart: dict[str, list[str]] = {}
    for pair in networks.tied_weights(base).items():
        kept, lacking = sorted(pair, key=lambda name: name not in shapes)
        if lacking in shapes:
            continue
        if adapter.alike(kept, lacking):
            adapter = adapter.without({lacking})
        else:
            apart.setdefault(kept, []).append(lacking)
            shapes[lacking] = shapes[kept]
            if kept in adapter.embeddings:  # brought in the place of both, while the two were one
                adapter = replace(adapter, embeddings={lacking: adapter.embeddings[kept]} | adapter.embeddings)
    adapter.check(shapes, base.name)
    files = {
        file: {target: name for name in some for target in (name, *apart.get(name, ()))} for file, some in there.items()
    }
    return MergePlan(adapter, files, {name: adapter.shape(name, shape) for name, shape in shapes.items()})


def pieces(made: MergePlan, dequantizer: Dequantizer | None) -> Iterator[tuple[Path, str, Iterator[Tensor]]]:
    """(the base's file, tensor's name, its rows in blocks) of the merged model, not yet cast to its dtype.

    Args:
        dequantizer: gives the 4-bit weights' place to their dequantized ones; None keeps the
            original weights.

    Raises:
        UserError: a tensor is not the one that was trained on; an adapter's change is none.
    """
    for shard, targets in made.files.items():
        with safe_open(shard, framework="pt") as file:
            for target, name in targets.items():
                weight = file.get_tensor(name)
                if dequantizer:
                    weight = dequantizer(name, weight)
                yield shard, target, made.adapter.pieces(target, weight)


def write_weights(
    base: Path, out: Path, adapter: AdapterDelta, dequantizer: Dequantizer | None
) -> safetensors_stream.Sums:
    """The merged model's files and their index, a block of rows in memory at a time.

    Returns:
        what `safetensors_stream.verify` must find when it reads them back.

    Raises:
        UserError: as `plan` and `pieces` do; or values are not finite.
    """
    made = plan(base, adapter)
    if dequantizer and (missing := dequantizer.hashes.keys() - made.shapes.keys()):
        raise UserError(f"the adapter belongs to another base: {min(missing)} is not in {base.name}")
    out.mkdir(parents=True, exist_ok=True)
    sums: safetensors_stream.Sums = {}
    with ThreadPoolExecutor(1) as disk, _one_thread():
        synced = []
        for shard, members in groupby(pieces(made, dequantizer), key=itemgetter(0)):
            shapes = {name: made.shapes[name] for name in made.files[shard]}
            with safetensors_stream.Writer(out / shard.name, shapes, DTYPE) as writer:
                for _, name, blocks in members:
                    writer.write(name, blocks)
            sums[shard.name] = writer.sums
            synced.append(disk.submit(atomic.fsync, out / shard.name))
        for one in synced:
            one.result()
    if (base / filenames.WEIGHTS_INDEX).exists():
        safetensors_stream.write_index(
            out, sums, sum(DTYPE.itemsize * math.prod(shape) for shape in made.shapes.values())
        )
    return sums


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one thread: blocks are small, and the other thread writes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_rest(base: Path, adapter: Path, out: Path) -> None:
    """Everything but the weights, which must be there: config, generation config, tokenizer, template, contract.

    The end-of-turn token that training supervised becomes a stop token of config and generation
    config, so that every server stops at it. A head that is no longer the embedding is untied, and a
    vocabulary that grew is counted anew.
    """
    from lockstep.prompts import template

    text = (adapter / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    chat = template.load(adapter, text)
    chat.tokenizer.save_pretrained(out)
    (out / filenames.CONTRACT).write_bytes((adapter / filenames.CONTRACT).read_bytes())
    config = atomic.read_json(base / filenames.CONFIG)
    file = base / filenames.GENERATION_CONFIG
    generation = atomic.read_json(file) if file.exists() else {}
    added = chat.tokenizer.added_tokens_decoder  # of the base's own ends those that no text of an answer holds
    theirs = [end for end in (*_ids(generation), *_ids(config)) if end in added and added[end].special]
    stops = [chat.end_of_turn, chat.tokenizer.eos_token_id, *theirs]
    unique = list(dict.fromkeys(stop for stop in stops if stop is not None))
    eos: Any = unique if len(unique) > 1 else unique[0]
    config |= {"eos_token_id": eos, "dtype": str(DTYPE).split(".")[-1]}
    config.pop("torch_dtype", None)
    if not _still_tied(base, out):
        config["tie_word_embeddings"] = False
    _count_vocabulary(config, out)
    atomic.write_json(out / filenames.CONFIG, config)
    atomic.write_json(out / filenames.GENERATION_CONFIG, generation | {"eos_token_id": eos})


def _still_tied(base: Path, out: Path) -> bool:
    there = safetensors_stream.tensors_of(out)

    def read(name: str) -> Tensor:
        with safe_open(there[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    pairs = [pair for pair in networks.tied_weights(base).items() if there.keys() >= set(pair)]
    return all(torch.equal(read(one), read(other)) for one, other in pairs)


def _count_vocabulary(config: dict[str, Any], out: Path) -> None:
    for file in safetensors_stream.files(out):
        for name, shape in safetensors_stream.shapes_of(file).items():
            if name.endswith(EMBEDDINGS):
                part = config if "vocab_size" in config else config.get("text_config", config)
                part["vocab_size"] = shape[0]


def _ids(config: dict[str, Any]) -> list[int]:
    ids = config.get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
