"""The trained model's own log-probabilities, on record: what merged and served models are compared with.

`reference.json` in the adapter's folder. In natural logarithms:

    dtype      what the model computed in
    golden     for each golden conversation of the contract that is no longer than what was trained, or 512
               tokens, after its prompt: the 20 likeliest next tokens, of the trained model and of its base
               without the adapter (null after full training)
    rows       for at most 32 held-out rows: `input_ids`, the places in it that are supervised, and the
               log-probability of each token there, trained and base; `end` is the last of them, the
               end-of-turn token after the whole answer; `messages` and `tools` that its last answer was given to
    probes     whole distributions, on rows of several kinds: see `reference_probes`
    experts    for each stack of experts that has an adapter: how many of them it changes
"""

from collections.abc import Iterable, Sequence
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
from lockstep.settings.tree import Settings
from lockstep.training import distributions, reference_probes
from lockstep.training.distributions import Batch
from lockstep.training.reference_probes import Probe

MAX_ROWS, MAX_POSITIONS = 32, 2000  # of held-out rows: a pass over them must cost little beside a training
LONG = 512  # tokens of a golden conversation that is recorded in any case; the gate compares the shortest ones


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


def record(
    model: Any,
    conversations: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    dtype: torch.dtype,
    without_adapter: AbstractContextManager[Any] | None,
    longest: int | None,
    more: Sequence[Probe] = (),
) -> dict[str, Any]:
    """Everything that reference.json holds.

    Args:
        conversations: of the contract; those longer than `longest` tokens, if that is set, are left out.
        without_adapter: a block in which the model is its base; None after full training.
        more: probes beside the held-out rows.
    """
    from lockstep.model import experts_adapter  # PEFT and bitsandbytes: a merged model is measured without

    fit = [golden for golden in conversations if longest is None or len(golden["prompt_ids"]) < longest]
    prompts = sorted(fit, key=lambda golden: len(golden["prompt_ids"]))
    batches, ordered = _asked([golden["prompt_ids"] for golden in prompts]), by_length(rows)
    what = "what the trained model says"
    nexts, tokens = _nexts(model, batches, dtype, what), _tokens(model, ordered, dtype, what)
    others = []
    for probe, (at, targets) in zip(
        more, distributions.of_rows(model, reference_probes.batches_of(more), dtype, f"{what}, probes"), strict=True
    ):
        others.append(reference_probes.as_json(probe, *reference_probes.likeliest(at, targets), None))
    base_nexts: list[Any] = [None] * len(nexts)
    base_tokens: list[Any] = [(None, None, None)] * len(tokens)
    if without_adapter is not None:
        with without_adapter:
            what = "what its base says"
            base_nexts = _nexts(model, batches, dtype, what)
            base_tokens = _tokens(model, ordered, dtype, what, [ids for _, ids, _ in tokens])
    measured = {id(row): place for place, row in enumerate(ordered)}
    recorded, likeliest = [], []
    for row in rows:
        (trained, ids, values), (base, _, base_values) = (of[measured[id(row)]] for of in (tokens, base_tokens))
        recorded.append(_row(row, trained, base))
        probe = Probe(reference_probes.ROWS, list(row["input_ids"]), reference_probes.places_of(row["labels"]))
        likeliest.append(reference_probes.as_json(probe, ids, values, base_values))
    return {
        "dtype": networks.dtype_name(dtype),
        "golden": [
            {"name": golden["name"], "trained": trained, "base": base}
            for golden, trained, base in zip(prompts, nexts, base_nexts, strict=True)
        ],
        "rows": recorded,
        "probes": [*likeliest, *others],
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


def _nexts(model: Any, batches: list[Batch], dtype: torch.dtype, what: str) -> list[dict[str, Any]]:
    """The likeliest next tokens after each prompt."""
    nexts = []
    for after_prompts, _ in distributions.log_probs(model, batches, dtype, f"{what}, conversations"):
        values, ids = after_prompts.topk(min(distributions.TOP, after_prompts.shape[-1]), dim=-1)
        for likeliest, their_values in zip(ids, values, strict=True):
            nexts.append({"ids": likeliest.tolist(), "logprobs": distributions.rounded(their_values)})
    return nexts


def _tokens(
    model: Any, rows: Sequence[dict[str, Any]], dtype: torch.dtype, what: str, ids: Sequence[Any] | None = None
) -> list[tuple[list[float], list[list[int]], list[list[float]]]]:
    """Of each row: the log-probabilities of its supervised tokens; and at its probe's places, ids and theirs.

    Args:
        ids: of each row, the ones to measure at its places; None: the likeliest.
    """
    measured = []
    for number, (row, (at, targets)) in enumerate(
        zip(rows, distributions.of_rows(model, _eights(rows), dtype, f"{what}, rows"), strict=True)
    ):
        supervised = [place for place, label in enumerate(row["labels"]) if label != IGNORE and place > 0]
        chosen = torch.tensor([supervised.index(place) for place in reference_probes.places_of(row["labels"])])
        if ids is None:
            of_places = reference_probes.likeliest(at[chosen], targets[chosen])
        else:
            of_places = ids[number], reference_probes.values_of(at[chosen], ids[number])
        measured.append((distributions.rounded(at.gather(1, targets[:, None])[:, 0]), *of_places))
    return measured


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


def read(adapter: Path) -> dict[str, Any]:
    """The record that lies in an adapter's folder.

    Raises:
        UserError: there is none.
    """
    file = adapter / filenames.REFERENCE
    if not file.exists():
        raise UserError(f"{paths.label(file)} is missing, as earlier versions wrote none: {manifest.again(adapter)}")
    record: dict[str, Any] = atomic.read_json(file)
    return record


def gap(adapter: Path, measured: Tensor, count: int) -> float:
    """Mean distance of the trained model's log-probabilities on record from those measured now, in nats per token.

    Args:
        measured: log-probability [n] of each supervised token of `probe_rows`, ordered by `by_length`.
        count: how many rows that are; earlier versions recorded more.

    Raises:
        UserError: there is no record.
    """
    rows = by_length(read(adapter)["rows"][:count])
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
