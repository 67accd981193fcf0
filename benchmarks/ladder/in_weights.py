"""Rungs in the weights: of the merged model, of the adapter, or of the base beneath it."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from ladder import rounding
from ladder.corruption import BOTH, LORA, MERGED, RELOADED, STARTED, Corruption, Spoil
from ladder.runs import WEIGHTS, Run, Weight, low_rank, tensors, update_of, weights, write_tensors
from lockstep.artifacts import atomic, filenames

Change = Callable[[Weight], Any]  # the weight that the merged model has instead; None: as it is
Tensors = dict[str, Any]


def merged_from(change: Change, run: Run) -> None:
    """Write the merged model's weights anew."""
    changed = {}
    for weight in weights(run):
        value = change(weight)
        changed[weight.name] = weight.merged if value is None else value.to(weight.merged.dtype)
    write_tensors(run.merged / WEIGHTS, changed)


def adapter_from(change: Callable[[Tensors], Tensors], run: Run) -> None:
    file = run.adapter / filenames.ADAPTER_WEIGHTS
    write_tensors(file, change(tensors(run.adapter)))


def updated(factor: Callable[[str, int], float], layers: int, weight: Weight) -> Any:
    """A weight whose update is scaled by a factor of its module's name and its layer, counted from the last: 0."""
    if weight.part is None:
        return None
    return weight.base.float() + factor(weight.name, layers - 1 - weight.layer) * weight.update


def _layers(run: Run) -> int:
    return 1 + max(weight.layer for weight in weights(run))


def scaled(factor: Callable[[str, int], float]) -> Spoil:
    """The adapter's updates times a factor; see `updated`."""

    def spoil(run: Run, mode: str) -> None:
        layers = _layers(run)
        if mode == MERGED:
            return merged_from(partial(updated, factor, layers), run)

        def change(held: Tensors) -> Tensors:
            for name in held:
                if ".lora_B." in name:
                    layer = int(name.split(".layers.")[1].split(".")[0])
                    held[name] = held[name] * factor(name, layers - 1 - layer)
            return held

        adapter_from(change, run)

    return spoil


def without(*parts: str) -> Callable[[str, int], float]:
    """No update, or next to none, where a module's name holds one of these: PEFT's zeros are refused as they are."""
    return lambda name, _: 1e-4 if any(part in name for part in parts) else 1.0


def without_last(count: int) -> Callable[[str, int], float]:
    return lambda _, from_last: 1e-4 if from_last < count else 1.0


def rounded(way: Callable[[Any], Any]) -> Spoil:
    """All matrices but the embeddings, of the merged model or of the adapter, through another storage."""

    def spoil(run: Run, mode: str) -> None:
        if mode == MERGED:
            merged_from(lambda weight: way(weight.merged) if weight.part is not None else None, run)
        else:
            adapter_from(lambda held: {name: way(held[name]).to(held[name].dtype) for name in held}, run)

    return spoil


def half_trained(run: Run, mode: str) -> None:
    """An earlier checkpoint's adapter."""
    steps = sorted(run.checkpoints.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    earlier = tensors(steps[0])
    if mode == LORA:
        return adapter_from(lambda _: earlier, run)
    parts = low_rank(steps[0])
    merged_from(
        lambda weight: weight.base.float() + update_of(parts[weight.name]) if weight.name in parts else None, run
    )


def other_merge(run: Run, mode: str) -> None:
    """The adapter on the original weights, which it was not trained on."""
    if mode == MERGED:
        return merged_from(lambda weight: None if weight.part is None else weight.original.float() + weight.update, run)
    original = {weight.name: weight.original.to(weight.base.dtype) for weight in weights(run)}
    write_tensors(run.base / WEIGHTS, original)


def base_noise(size: float, run: Run, mode: str) -> None:
    """Noise in the base beneath the adapter."""
    changed = {
        weight.name: weight.base if weight.part is None else rounding.noise(size, 1, weight.base).to(weight.base.dtype)
        for weight in weights(run)
    }
    write_tensors(run.base / WEIGHTS, changed)


def rearranged(order: Callable[[Run, Any], Any]) -> Spoil:
    """Rows of the embeddings in another order.

    Args:
        order: of all rows.
    """

    def spoil(run: Run, mode: str) -> None:
        held = tensors(run.served(mode))
        for name in held:
            if "embed_tokens" in name or "lm_head" in name:
                held[name] = held[name][order(run, len(held[name]))]
        write_tensors(run.served(mode) / WEIGHTS, held)

    return spoil


def swapped_rows(run: Run, count: int) -> Any:
    """Two tokens that many answers hold."""
    import torch

    first, second = frequent_tokens(run)[:2]
    order = torch.arange(count)
    order[first], order[second] = second, first
    return order


def swapped_rare_rows(run: Run, count: int) -> Any:
    import torch

    first, second = unused_tokens(run, count)[1000:1002]
    order = torch.arange(count)
    order[first], order[second] = second, first
    return order


def permuted_rare_rows(run: Run, count: int) -> Any:
    """All tokens that no row of the data uses."""
    import torch

    unused = torch.tensor(unused_tokens(run, count))
    order = torch.arange(count)
    order[unused] = unused[torch.randperm(len(unused), generator=torch.Generator().manual_seed(0))]
    return order


def swapped_layers(run: Run, mode: str) -> None:
    """Layers 5 and 6 of the merged model in each other's place, or of the adapter."""
    folder = run.merged if mode == MERGED else run.adapter
    file = run.merged / WEIGHTS if mode == MERGED else run.adapter / filenames.ADAPTER_WEIGHTS
    held = tensors(folder)
    others = {".layers.5.": ".layers.6.", ".layers.6.": ".layers.5."}

    def other(name: str) -> str:
        return next((name.replace(here, there) for here, there in others.items() if here in name), name)

    write_tensors(file, {name: held[other(name)] for name in held})


def norm(factor: float, run: Run, mode: str) -> None:
    """The weights of the last norm times a factor."""
    held = tensors(run.served(mode))
    held["model.norm.weight"] = (held["model.norm.weight"].float() * factor).to(held["model.norm.weight"].dtype)
    write_tensors(run.served(mode) / WEIGHTS, held)


def cut(part: str, run: Run, mode: str) -> None:
    """An adapter's file that lacks some modules."""
    adapter_from(lambda held: {name: tensor for name, tensor in held.items() if part not in name}, run)


def frequent_tokens(run: Run) -> list[int]:
    """Those of held-out answers, the most frequent first, without those that end one."""
    stops = atomic.read_json(run.adapter / filenames.CONTRACT)["stop_ids"]
    rows = atomic.read_json(run.adapter / filenames.REFERENCE)["rows"]
    counts = Counter(token for row in rows for token in row["input_ids"][row["start"] :])
    return [token for token, _ in counts.most_common() if token not in stops]


def unused_tokens(run: Run, count: int) -> list[int]:
    """Ids below `count` that stand in no row of the data and in no golden conversation."""
    from datasets import load_from_disk

    used = {
        token
        for conversation in atomic.read_json(run.adapter / filenames.CONTRACT)["conversations"]
        for token in conversation["prompt_ids"]
    }
    for split in (filenames.TRAIN, filenames.VALIDATION, filenames.TEST):
        folder = run.folder / filenames.DATA / split
        if folder.exists():
            used |= {token for row in load_from_disk(str(folder))["input_ids"] for token in row}
    return [token for token in range(count) if token not in used]


def resharded(run: Run, mode: str) -> None:
    """The same weights in two files, as another tool might write them."""
    held = tensors(run.merged)
    names = sorted(held)
    files = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in (0, 1)}
    for file, part in files.items():
        write_tensors(run.merged / file, {name: held[name] for name in part})
    (run.merged / WEIGHTS).unlink()
    total = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    index = {name: file for file, part in files.items() for name in part}
    atomic.write_json(run.merged / filenames.WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": index})


RELOADS_BASE = {LORA: RELOADED}
STARTS = dict.fromkeys(
    BOTH, STARTED
)  # vLLM leaves a head that is tied to the embeddings as it was when it reloads them
SCALES = (0.8, 0.9, 0.95, 0.99, 1.01, 1.05, 1.1)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
OF_WEIGHTS = frozenset({"other_weights"})
OF_SCALE = OF_WEIGHTS | {"scaled"}
OF_NOTHING = OF_WEIGHTS | {"no_effect"}
OF_PART = OF_SCALE | {"partial"}
OF_ROWS = OF_WEIGHTS | {"embeddings"}

RUNGS = [
    Corruption("as trained", lambda run, mode: None, is_right=True),
    Corruption("in two files", resharded, modes=(MERGED,), how={MERGED: STARTED}, is_right=True),
    Corruption("no adapter", scaled(lambda *_: 1e-4), OF_NOTHING),
    *(Corruption(f"scale {size}", scaled(lambda *_, size=size: size), OF_SCALE) for size in SCALES),
    Corruption("scale 2", scaled(lambda *_: 2.0), OF_SCALE),
    Corruption("without attention", scaled(without(*ATTENTION)), OF_PART),
    Corruption("without v_proj", scaled(without("v_proj")), OF_PART),
    Corruption("without down_proj", scaled(without("down_proj")), OF_PART),
    *(Corruption(f"without last {count}", scaled(without_last(count)), OF_PART) for count in (1, 3, 10)),
    Corruption("v_proj cut from the file", partial(cut, "v_proj"), OF_PART, modes=(LORA,)),
    Corruption("half trained", half_trained, OF_SCALE),
    Corruption("int8", rounded(rounding.int8), same_model=False),
    Corruption("fp8", rounded(rounding.fp8), same_model=False),
    Corruption("nf4 again", rounded(rounding.nf4), OF_NOTHING, same_model=False),
    *(
        Corruption(f"noise {size}", rounded(partial(rounding.noise, size, 0)), same_model=False)
        for size in (0.01, 0.03, 0.05, 0.1)
    ),
    *(
        Corruption(f"base noise {size}", partial(base_noise, size), OF_WEIGHTS, modes=(LORA,), how=RELOADS_BASE)
        for size in (0.01, 0.05)
    ),
    Corruption("other merge", other_merge, OF_WEIGHTS, how=RELOADS_BASE),
    Corruption("layers 5 and 6 swapped", swapped_layers, OF_SCALE),
    Corruption("last norm 1.02", partial(norm, 1.02), OF_WEIGHTS, how=RELOADS_BASE),
    Corruption("last norm 1.1", partial(norm, 1.1), OF_WEIGHTS, how=RELOADS_BASE),
    Corruption("two frequent rows swapped", rearranged(swapped_rows), OF_ROWS, how=STARTS),
    Corruption("two rare rows swapped", rearranged(swapped_rare_rows), OF_ROWS, how=STARTS),
    Corruption("unused rows permuted", rearranged(permuted_rare_rows), OF_ROWS, how=STARTS),
]
