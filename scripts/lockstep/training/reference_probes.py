"""What the trained model is put on record for beside its tokens' log-probabilities: whole distributions.

`probes` in reference.json, for each:

    kind       rows: a held-out row · vocabulary: tokens drawn from all of it, so that every part of the embeddings is
               read · long: one row as long as is served, which ends as it began, so that its last tokens can only be
               foretold by looking back over its whole length
    input_ids  its tokens
    places     positions in it; the distribution is that of the token there, given those before. A row's last place
               is that of its end-of-turn token.
    ids        for each place: the likeliest tokens by the trained model, and the one that stands there
    trained    their log-probabilities; `base` those of the base without adapter (held-out rows only, null otherwise)
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lockstep.artifacts import atomic, filenames
from lockstep.data.collator import IGNORE, Collator
from lockstep.model import networks
from lockstep.settings.tree import Settings
from lockstep.training import distributions, probes

PER_ROW = 4  # places in a held-out row, the end-of-turn token's among them
VOCABULARY_ROWS, VOCABULARY_LENGTH = 48, 15  # with the token that is foretold 16, so that nothing is padded
LONG, LONG_AT_LEAST = 8192, 2048  # tokens of the long row, where it is served so long
LONG_PLACES = 8  # spread over it; and as many in its end
ECHO = 32  # tokens that the long row begins and ends with

ROWS, VOCABULARY, LONG_ROW = "rows", "vocabulary", "long"


@dataclass(frozen=True)
class Probe:
    """A row and the positions in it at which distributions are recorded. See above."""

    kind: str
    input_ids: list[int]
    places: list[int]

    def with_labels(self) -> dict[str, list[int]]:
        """A row whose loss would be taken at the probe's places."""
        labels = [IGNORE] * len(self.input_ids)
        for place in self.places:
            labels[place] = self.input_ids[place]
        return {"input_ids": self.input_ids, "labels": labels}


def choose(settings: Settings, network: Any, rows: Sequence[dict[str, Any]], folder: Path) -> list[Probe]:
    """Rows of the kinds `vocabulary` and `long`.

    Args:
        rows: held-out ones, with `input_ids`.
        folder: with the tokenizer's files and the contract.
    """
    longest = networks.longest(network.config) or settings.serve.max_model_len
    length = min(settings.serve.max_model_len, longest, _affordable(settings, network))
    ids = _text_ids(network, folder)
    return [*drawn(ids, length), *lengthy([row["input_ids"] for row in rows], length)]


def _affordable(settings: Settings, network: Any) -> int:
    """Tokens in a row that a pass has time and memory for at the end of a training.

    On a GPU as many as a pass of training held, which needed more memory for each; fewer where attention holds all
    pairs of tokens at once, and on a CPU.
    """
    held = settings.train.per_device_train_batch_size * settings.data.max_length
    is_fast = next(network.parameters()).device.type == "cuda" and network.config._attn_implementation != "eager"
    return min(LONG, max(LONG_AT_LEAST, held)) if is_fast else LONG_AT_LEAST


def drawn(ids: Sequence[int], longest: int) -> list[Probe]:
    """Rows of the kind `vocabulary`: one token from each of as many equal parts of the ids as all rows have places.

    Args:
        longest: tokens of a row, at most.
    """
    length = min(VOCABULARY_LENGTH, longest - 1)
    count = VOCABULARY_ROWS * length
    if length < 1 or len(ids) < 2:
        return []
    draw = random.Random(0)
    tokens = [ids[min(len(ids) - 1, int((part + draw.random()) * len(ids) / count))] for part in range(count)]
    draw.shuffle(tokens)
    chunks = (tokens[start : start + length] for start in range(0, count, length))
    return [Probe(VOCABULARY, [*chunk, chunk[0]], [length]) for chunk in chunks]


def lengthy(rows: Sequence[list[int]], length: int) -> list[Probe]:
    """The row of the kind `long`: tokens drawn from held-out rows, these rows, and the same drawn tokens again.

    Args:
        length: tokens of it. None is made where a held-out row is as long, or nothing would be between the ends.
    """
    between = length - 2 * ECHO
    if between < ECHO or not rows or length <= max(len(row) for row in rows):
        return []
    draw = random.Random(1)
    ids = sorted({token for row in rows for token in row})
    echoed = [draw.choice(ids) for _ in range(ECHO)]
    middle: list[int] = []
    while len(middle) < between:
        for row in rows:
            middle += row
    whole = [*echoed, *middle[:between], *echoed]
    spread = [ECHO + between * part // LONG_PLACES - 1 for part in range(1, LONG_PLACES + 1)]
    ends = [length - 1 - ECHO * part // (2 * LONG_PLACES) for part in range(LONG_PLACES)]
    return [Probe(LONG_ROW, whole, [*spread, *reversed(ends)])]


def places_of(labels: Sequence[int]) -> list[int]:
    """Positions of at most PER_ROW supervised tokens, evenly spread, the last one among them."""
    *others, end = [place for place, label in enumerate(labels) if label != IGNORE and place > 0]
    step = max(1, -(-len(others) // (PER_ROW - 1)))
    return [*others[::step], end]


def batches_of(chosen: Sequence[Probe]) -> list[distributions.Batch]:
    """Probes as batches, in order; each holds rows of equal length."""
    groups: list[list[Probe]] = []
    for probe in chosen:
        if not groups or len(groups[-1]) == VOCABULARY_ROWS or len(groups[-1][0].input_ids) != len(probe.input_ids):
            groups.append([])
        groups[-1].append(probe)
    return [Collator(0)([probe.with_labels() for probe in group]) for group in groups]


def likeliest(log_probs: Tensor, targets: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """What is recorded of each place: the ids of the likeliest tokens and of the target, and their log-probabilities.

    Args:
        log_probs: [places, vocabulary].
        targets: [places].
    """
    top = log_probs.topk(min(distributions.TOP, log_probs.shape[-1]), dim=-1).indices.tolist()
    ids = [list(dict.fromkeys([*row, target])) for row, target in zip(top, targets.tolist(), strict=True)]
    return ids, values_of(log_probs, ids)


def values_of(log_probs: Tensor, ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """The log-probabilities of each place's tokens, rounded."""
    return [distributions.rounded(place[torch.tensor(row)]) for place, row in zip(log_probs, ids, strict=True)]


def kl_of(network: Any, recorded: Sequence[dict[str, Any]], dtype: torch.dtype, what: str) -> dict[str, float]:
    """Mean KL of a model's distributions from those on record, of each kind, in nats a token.

    Args:
        recorded: some of reference.json's `probes`.
        dtype: of the matrix products.
        what: the bar's name.
    """
    chosen = [Probe(probe["kind"], probe["input_ids"], probe["places"]) for probe in recorded]
    of_kinds: dict[str, list[Tensor]] = {}
    rows = distributions.of_rows(network, batches_of(chosen), dtype, what)
    for probe, (log_probs, _) in zip(recorded, rows, strict=True):
        for at, ids, trained in zip(log_probs, probe["ids"], probe["trained"], strict=True):
            kl = distributions.partition_kl(torch.tensor([trained]), at[torch.tensor(ids)][None])
            of_kinds.setdefault(probe["kind"], []).append(kl)
    return {kind: torch.cat(values).mean().item() for kind, values in of_kinds.items()}


def as_json(
    probe: Probe, ids: list[list[int]], trained: list[list[float]], base: list[list[float]] | None
) -> dict[str, Any]:
    """One of reference.json's `probes`."""
    return {
        "kind": probe.kind, "input_ids": probe.input_ids, "places": probe.places, "ids": ids, "trained": trained,
        "base": base,
    }  # fmt: skip


def _text_ids(network: Any, folder: Path) -> list[int]:
    """Ids that a text may hold: none that the tokenizer adds, which may stand for an image."""
    size = atomic.read_json(folder / filenames.CONTRACT).get("vocabulary", {}).get("size")
    file = folder / filenames.TOKENIZER
    added = atomic.read_json(file)["added_tokens"] if file.exists() else []
    special = {token["id"] for token in added}
    return [token for token in probes.text_ids(network) if token not in special and (size is None or token < size)]
