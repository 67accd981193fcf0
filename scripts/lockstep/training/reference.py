"""The trained model's own log-probabilities, on record: what merged and served models are compared with.

`reference.json` in the adapter's folder. In natural logarithms:

    dtype      what the model computed in
    golden     for each golden conversation of the contract that is no longer than what was trained, or 512
               tokens, after its prompt: the 20 likeliest next tokens, of the trained model and of its base
               without the adapter (null after full training)
    rows       for at most 32 held-out rows: `input_ids`, the places in it that are supervised, and the
               log-probability of each token there, trained and base; `end` is the last of them, the
               end-of-turn token after the whole answer; `messages` and `tools` that its last answer was given to
    experts    for each stack of experts that has an adapter: how many of them it changes
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.data import conversation_row
from lockstep.data.collator import IGNORE, Collator
from lockstep.errors import UserError
from lockstep.model import networks
from lockstep.processes import busy
from lockstep.settings.tree import Settings
from lockstep.training import loss

MAX_ROWS, MAX_POSITIONS = 32, 2000  # of held-out rows: a pass over them must cost little beside a training
LONG = 512  # tokens of a golden conversation that is recorded in any case; the gate compares the shortest ones
TOP = 20  # as many as vLLM gives
DIGITS = 6

Batch = dict[str, Tensor]


def probe_rows(data: Path) -> list[dict[str, Any]]:
    """Held-out rows, cut off at MAX_ROWS rows or MAX_POSITIONS supervised tokens; training rows where none are."""
    from datasets import load_from_disk

    split = load_from_disk(str(data / filenames.VALIDATION))
    if not len(split):
        split = load_from_disk(str(data / filenames.TRAIN))
    chosen: list[dict[str, Any]] = []
    positions = 0
    for row in split.select(range(min(MAX_ROWS, len(split)))):
        positions += len(row["labels"]) - row["labels"].count(IGNORE)
        if chosen and positions > MAX_POSITIONS:
            break
        chosen.append(row)
    return chosen


def by_length(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows from the shortest to the longest, which need little padding; those of equal length in their order."""
    return sorted(rows, key=lambda row: len(row["input_ids"]))


def longest_prompt(settings: Settings, network: Any) -> int:
    """The longest golden conversation, in tokens, that is put on record."""
    limit = max(LONG, settings.data.max_length)
    return min(limit, networks.longest(network.config) or limit)


def log_probs(
    network: nn.Module, batches: Sequence[Batch], dtype: torch.dtype, what: str = "log-probabilities"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch: float32 log-probabilities [positions, vocabulary] at supervised positions, and their targets.

    Args:
        dtype: of the matrix products; training computed so.
        what: the bar's name.
    """
    network.eval()
    device = next(network.parameters()).device
    for batch in busy.steps(batches, what, unit="batches"):
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits, targets = loss.supervised_logits(network, {name: part.to(device) for name, part in batch.items()})
            yield torch.log_softmax(logits, dim=-1).cpu(), targets.cpu()


def record(
    model: Any,
    conversations: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    dtype: torch.dtype,
    without_adapter: AbstractContextManager[Any] | None,
    longest: int | None,
) -> dict[str, Any]:
    """Everything that reference.json holds.

    Args:
        conversations: of the contract; those longer than `longest` tokens, if that is set, are left out.
        without_adapter: a block in which the model is its base; None after full training.
    """
    from lockstep.model import experts_adapter  # PEFT and bitsandbytes: a merged model is measured without

    fit = [golden for golden in conversations if longest is None or len(golden["prompt_ids"]) < longest]
    prompts = sorted(fit, key=lambda golden: len(golden["prompt_ids"]))
    batches = _asked([golden["prompt_ids"] for golden in prompts]), _eights(by_length(rows))
    nexts, tokens = _measure(model, batches, dtype, "what the trained model says")
    base_nexts: list[Any] = [None] * len(nexts)
    base_tokens: list[Any] = [None] * len(tokens)
    if without_adapter is not None:
        with without_adapter:
            base_nexts, base_tokens = _measure(model, batches, dtype, "what its base says")
    measured = {id(row): place for place, row in enumerate(by_length(rows))}
    places = [measured[id(row)] for row in rows]
    return {
        "dtype": networks.dtype_name(dtype),
        "golden": [
            {"name": golden["name"], "trained": trained, "base": base}
            for golden, trained, base in zip(prompts, nexts, base_nexts, strict=True)
        ],
        "rows": [_row(row, tokens[place], base_tokens[place]) for row, place in zip(rows, places, strict=True)],
    } | ({"experts": experts} if (experts := experts_adapter.changed(model)) else {})


def _row(row: dict[str, Any], trained: list[float], base: list[float] | None) -> dict[str, Any]:
    places = [place for place, label in enumerate(row["labels"]) if label != IGNORE and place > 0]
    messages, tools = conversation_row.unpacked(row) if "messages" in row else ([], None)
    return {
        "row": row.get("row"),
        "messages": messages[:-1],
        "tools": tools,
        "input_ids": list(row["input_ids"]),
        "places": places,
        "start": len(row["input_ids"]) - row["answer"],  # of the last answer
        "trained": trained,
        "base": base,
        "end": {"id": row["input_ids"][places[-1]], "trained": trained[-1], "base": base and base[-1]},
    }


def _measure(
    model: Any, batches: tuple[list[Batch], list[Batch]], dtype: torch.dtype, what: str
) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """The likeliest next tokens after each prompt, and the log-probabilities of each row's supervised tokens."""
    nexts = []
    for after_prompts, _ in log_probs(model, batches[0], dtype, f"{what}, conversations"):
        values, ids = after_prompts.topk(min(TOP, after_prompts.shape[-1]), dim=-1)
        for likeliest, their_values in zip(ids, values, strict=True):
            nexts.append({"ids": likeliest.tolist(), "logprobs": _rounded(their_values)})
    tokens: list[list[float]] = []
    of_rows = log_probs(model, batches[1], dtype, f"{what}, rows")
    for (at_positions, targets), batch in zip(of_rows, batches[1], strict=True):
        counts = (batch["labels"][:, 1:] != IGNORE).sum(1).tolist()
        chosen = at_positions.gather(1, targets[:, None])[:, 0]
        tokens += [_rounded(part) for part in torch.split(chosen, counts)]
    return nexts, tokens


def _asked(prompts: Sequence[Sequence[int]]) -> list[Batch]:
    """Batches whose only supervised position is the one after each prompt; prompts sorted by length pad little."""
    batches: list[list[dict[str, Any]]] = []
    for ids in prompts:
        if not batches or len(batches[-1]) == 8 or len(ids) > 1.3 * len(batches[-1][0]["input_ids"]):
            batches.append([])
        batches[-1].append({"input_ids": [*ids, 0], "labels": [IGNORE] * len(ids) + [0]})
    return [Collator(0)(rows) for rows in batches]


def _eights(rows: Sequence[dict[str, Any]]) -> list[Batch]:
    return [Collator(0)(rows[start : start + 8]) for start in range(0, len(rows), 8)]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]


def gap(adapter: Path, measured: Tensor, count: int) -> float:
    """Mean distance of the trained model's log-probabilities on record from those measured now, in nats per token.

    Args:
        measured: log-probability [n] of each supervised token of `probe_rows`, ordered by `by_length`.
        count: how many rows that are; earlier versions recorded more.

    Raises:
        UserError: there is no record.
    """
    file = adapter / filenames.REFERENCE
    if not file.exists():
        raise UserError(f"{paths.label(file)} is missing, as earlier versions wrote none: {manifest.again(adapter)}")
    rows = by_length(atomic.read_json(file)["rows"][:count])
    recorded = [value for row in rows for value in row["trained"]]
    distance: float = sum(abs(a - b) for a, b in zip(recorded, measured.tolist(), strict=True))
    return distance / len(recorded)


def check_experts(adapter: Path, model: nn.Module) -> None:
    """Compare the experts that an adapter changes with those on record, one of which is too few to move many tokens.

    Raises:
        UserError: there are fewer, or more.
    """
    from lockstep.model import experts_adapter

    recorded = atomic.read_json(adapter / filenames.REFERENCE).get("experts", {})
    for name, count in experts_adapter.changed(model).items():
        if count != recorded.get(name, count):
            raise UserError(
                f"the adapter changes {count} experts of {name}, and training changed {recorded[name]}: it was changed "
                f"since; {manifest.again(adapter)}"
            )
