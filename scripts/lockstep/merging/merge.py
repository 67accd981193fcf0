"""Trained output → one model in bfloat16, shard by shard over safetensors, with exact arithmetic.

A QLoRA adapter was trained on weights that went through 4 bits and back. Usually it is added to the
original weights instead, which makes another model than the one that was trained.
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
from lockstep.merging.dequantizer import Dequantizer
from lockstep.model import networks
from lockstep.model.adapter_delta import EMBEDDINGS, AdapterDelta

DTYPE = torch.bfloat16  # of every merged model


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


def plan_merge(base: Path, adapter: AdapterDelta) -> MergePlan:
    """The merge of an adapter, possibly an empty one, into a base.

    Raises:
        UserError: the adapter changes a tensor that the base lacks, does not fit it, or lacks one itself.
    """
    in_files = {file: safetensors_stream.shapes_of(file) for file in safetensors_stream.files(base)}
    shapes: dict[str, tuple[int, ...]] = {}
    for tensors in in_files.values():
        shapes |= tensors
    # Of two tied tensors the base's files hold one. Where the adapter changes both alike, that stays so; otherwise
    # they part, and the other one is written, too, made from the one that is there.
    parted: dict[str, list[str]] = {}
    for pair in networks.tied_weights(base).items():
        kept, lacking = sorted(pair, key=lambda name: name not in shapes)
        if lacking in shapes:
            continue
        if adapter.keeps_tied(kept, lacking):
            adapter = adapter.without({lacking})
        else:
            parted.setdefault(kept, []).append(lacking)
            shapes[lacking] = shapes[kept]
            if kept in adapter.embeddings:  # brought in the place of both, while the two were one
                adapter = replace(adapter, embeddings={lacking: adapter.embeddings[kept]} | adapter.embeddings)
    adapter.check_base(shapes, base.name)
    files: dict[Path, dict[str, str]] = {}
    for file, tensors in in_files.items():
        files[file] = {}
        for name in tensors:
            files[file] |= dict.fromkeys((name, *parted.get(name, ())), name)
    return MergePlan(adapter, files, {name: adapter.shape(name, shape) for name, shape in shapes.items()})


def pieces(plan: MergePlan, dequantizer: Dequantizer | None) -> Iterator[tuple[Path, str, Iterator[Tensor]]]:
    """(the base's file, tensor's name, its rows in blocks) of the merged model, not yet cast to its dtype.

    Args:
        dequantizer: replaces weights by their dequantized 4-bit ones; None keeps the original weights.

    Raises:
        UserError: a tensor is not the one that was trained on; an adapter's change is none.
    """
    for shard, targets in plan.files.items():
        with safe_open(shard, framework="pt") as file:
            for target, name in targets.items():
                weight = file.get_tensor(name)
                if dequantizer:
                    weight = dequantizer(name, weight)
                yield shard, target, plan.adapter.pieces(target, weight)


def write_weights(
    base: Path, out: Path, adapter: AdapterDelta, dequantizer: Dequantizer | None
) -> safetensors_stream.Sums:
    """The merged model's files and their index, a block of rows in memory at a time.

    Returns:
        what `safetensors_stream.verify` must find when it reads them back.

    Raises:
        UserError: as `plan_merge` and `pieces` do; or values are not finite.
    """
    plan = plan_merge(base, adapter)
    if dequantizer and (missing := dequantizer.hashes.keys() - plan.shapes.keys()):
        raise UserError(f"the adapter belongs to another base: {min(missing)} is not in {base.name}")
    out.mkdir(parents=True, exist_ok=True)
    sums: safetensors_stream.Sums = {}
    with ThreadPoolExecutor(1) as disk, _one_thread():
        synced = []
        for shard, members in groupby(pieces(plan, dequantizer), key=itemgetter(0)):
            shapes = {name: plan.shapes[name] for name in plan.files[shard]}
            with safetensors_stream.Writer(out / shard.name, shapes, DTYPE) as writer:
                for _, name, blocks in members:
                    writer.write(name, blocks)
            sums[shard.name] = writer.sums
            synced.append(disk.submit(atomic.fsync, out / shard.name))
        for job in synced:
            job.result()
    if (base / filenames.WEIGHTS_INDEX).exists():
        size = sum(DTYPE.itemsize * math.prod(shape) for shape in plan.shapes.values())
        safetensors_stream.write_index(out, sums, size)
    return sums


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute on one thread: blocks are small, and the other thread writes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_rest(base: Path, adapter: Path, out: Path) -> None:
    """Write everything but the weights, which must be there already: configs, tokenizer, template, contract.

    The end-of-turn token that training supervised becomes a stop token in config and generation
    config, so that every server stops at it. A head that is no longer the embedding is untied, and the
    size of a vocabulary that grew is corrected.
    """
    from lockstep.prompts import template

    text = (adapter / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    chat = template.load(adapter, text)
    chat.tokenizer.save_pretrained(out)
    (out / filenames.CONTRACT).write_bytes((adapter / filenames.CONTRACT).read_bytes())
    config = atomic.read_json(base / filenames.CONFIG)
    file = base / filenames.GENERATION_CONFIG
    generation = atomic.read_json(file) if file.exists() else {}
    # of the base's own stop tokens only special ones: the text of an answer cannot hold them
    added = chat.tokenizer.added_tokens_decoder
    of_base = [stop for stop in (*_stop_ids(generation), *_stop_ids(config)) if stop in added and added[stop].special]
    stops = [chat.end_of_turn, chat.tokenizer.eos_token_id, *of_base]
    unique = list(dict.fromkeys(stop for stop in stops if stop is not None))
    eos: Any = unique if len(unique) > 1 else unique[0]
    config |= {"eos_token_id": eos, "dtype": networks.dtype_name(DTYPE)}
    config.pop("torch_dtype", None)
    if not _still_tied(base, out):
        config["tie_word_embeddings"] = False
    _count_vocabulary(config, out)
    atomic.write_json(out / filenames.CONFIG, config)
    atomic.write_json(out / filenames.GENERATION_CONFIG, generation | {"eos_token_id": eos})


def _still_tied(base: Path, out: Path) -> bool:
    """Whether the tensors that are one in the base are equal in the merged model, or still one."""
    file_of = safetensors_stream.tensors_of(out)

    def read(name: str) -> Tensor:
        with safe_open(file_of[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    pairs = [pair for pair in networks.tied_weights(base).items() if file_of.keys() >= set(pair)]
    return all(torch.equal(read(first), read(second)) for first, second in pairs)


def _count_vocabulary(config: dict[str, Any], out: Path) -> None:
    """Set the config's vocabulary size to the rows of the embedding."""
    for file in safetensors_stream.files(out):
        for name, shape in safetensors_stream.shapes_of(file).items():
            if name.endswith(EMBEDDINGS):
                part = config if "vocab_size" in config else config.get("text_config", config)
                part["vocab_size"] = shape[0]


def _stop_ids(config: dict[str, Any]) -> list[int]:
    ids = config.get("eos_token_id")
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]
