"""Which evaluation rows a model may have seen in training: the same text, or nearly the same."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from lockstep.data.near_duplicates import shingles
from lockstep.text import normalise

SHARE = 0.75  # of an evaluation text's n-grams that occur in one training text: nearly the same
SHORTEST = (
    8  # n-grams; a shorter text is only compared as a whole, since one changed character changes too many of them
)
LISTED = 100  # row numbers that a report names

Pair = tuple[str, str]  # what is asked, and the reference answer
Near = tuple[int, float]  # training row, and the share of n-grams that it holds


@dataclass
class Overlap:
    """Evaluation row → the first training row that shares its text; for near ones → the nearest, with its share.

    A near pair is a row whose prompt and answer are both near those of the same training row. Rows made
    from a template can be near without being a leak; an equal prompt is a leak, whatever its answer.
    """

    rows: int
    training_rows: int = 0
    prompts: dict[int, int] = field(default_factory=dict)
    answers: dict[int, int] = field(default_factory=dict)
    pairs: dict[int, int] = field(default_factory=dict)
    near_prompts: dict[int, Near] = field(default_factory=dict)
    near_answers: dict[int, Near] = field(default_factory=dict)
    near_pairs: dict[int, Near] = field(default_factory=dict)

    @property
    def leaked(self) -> list[int]:
        """Evaluation rows whose prompt was trained on."""
        return sorted(self.prompts)

    def summary(self) -> dict[str, Any]:
        """Counts of evaluation rows, and the first numbers as [evaluation row, training row]."""
        summary: dict[str, Any] = {
            "rows": self.rows,
            "training_rows": self.training_rows,
            "leaked": len(self.leaked),
            "prompts": _listed(self.prompts),
            "answers": _listed(self.answers),
            "pairs": _listed(self.pairs),
        }
        for name in ("near_prompts", "near_answers", "near_pairs"):
            nearest: dict[int, Near] = getattr(self, name)
            summary[name] = _listed({row: training_row for row, (training_row, _) in nearest.items()})
        return summary


def _listed(matches: Mapping[int, int]) -> dict[str, Any]:
    return {"rows": len(matches), "first": [list(pair) for pair in sorted(matches.items())[:LISTED]]}


def find(training: Iterable[Pair], evaluation: Sequence[Pair], share: float = SHARE) -> Overlap:
    """What the evaluation rows share with the training rows, which are read once and not kept.

    Texts are equal if they are equal when normalised. A row that is equal in some part is left out of the
    `near_` account of that part.

    Args:
        training, evaluation: (prompt, answer) of each row.
        share: the containment (Broder, 1997) from which on a text is near: the share of its n-grams that occur in
            one training text.
    """
    overlap = Overlap(len(evaluation))
    prompts = _Index([prompt for prompt, _ in evaluation], share)
    answers = _Index([answer for _, answer in evaluation], share)
    for number, (prompt, answer) in enumerate(training):
        overlap.training_rows += 1
        same_prompts, same_answers = prompts.same(prompt), answers.same(answer)
        _keep_first(overlap.prompts, same_prompts, number)
        _keep_first(overlap.answers, same_answers, number)
        _keep_first(overlap.pairs, set(same_prompts).intersection(same_answers), number)
        near_prompts, near_answers = prompts.near(prompt), answers.near(answer)
        both = near_prompts.keys() & near_answers.keys()
        _keep_nearest(overlap.near_prompts, near_prompts, number)
        _keep_nearest(overlap.near_answers, near_answers, number)
        _keep_nearest(overlap.near_pairs, {row: min(near_prompts[row], near_answers[row]) for row in both}, number)
    # an equal text is near as well, and counts once
    overlap.near_prompts = _without(overlap.near_prompts, overlap.prompts)
    overlap.near_answers = _without(overlap.near_answers, overlap.answers)
    overlap.near_pairs = _without(overlap.near_pairs, overlap.pairs)
    return overlap


def _keep_first(matches: dict[int, int], rows: Iterable[int], training_row: int) -> None:
    for row in rows:
        matches.setdefault(row, training_row)


def _keep_nearest(nearest: dict[int, Near], shares: Mapping[int, float], training_row: int) -> None:
    for row, part in shares.items():
        if part > nearest.get(row, (0, 0.0))[1]:
            nearest[row] = training_row, part


def _without(nearest: Mapping[int, Near], same: Mapping[int, int]) -> dict[int, Near]:
    return {row: match for row, match in nearest.items() if row not in same}


class _Index:
    """Evaluation texts, in which training texts are looked up.

    Only the rarer half of a text's n-grams is in the index, which keeps the lookup of common phrases cheap and
    misses nothing: a training text that holds a share of all n-grams lacks at most (1 − share) of them. So of the
    n-grams in the index it holds at least their number minus that many (`needed`), and a text that holds fewer
    need not be compared in full.
    """

    def __init__(self, texts: Sequence[str], share: float) -> None:
        self.share = share
        self.rows_of_text: dict[str, list[int]] = {}  # normalised text → rows
        for row, text in enumerate(texts):
            self.rows_of_text.setdefault(normalise.normalise(text), []).append(row)
        self.grams = [shingles(text) for text in texts]  # by row
        frequency = Counter(chain.from_iterable(self.grams))
        self.rows_of_gram: dict[str, list[int]] = {}
        self.needed: list[int] = []  # by row
        for row, grams in enumerate(self.grams):
            rarest = sorted(grams, key=lambda gram: (frequency[gram], gram))[: math.ceil(len(grams) / 2)]
            # 1e-9: a product that should be whole must not be rounded down past it
            self.needed.append(len(rarest) - math.floor((1 - share) * len(grams) + 1e-9))
            if len(grams) >= SHORTEST:
                for gram in rarest:
                    self.rows_of_gram.setdefault(gram, []).append(row)

    def same(self, text: str) -> list[int]:
        """Rows whose text is equal to this one."""
        return self.rows_of_text.get(normalise.normalise(text), [])

    def near(self, text: str) -> dict[int, float]:
        """Row → the share of its n-grams that this text holds, where that is at least `share`."""
        grams = shingles(text)
        hits = Counter(chain.from_iterable(self.rows_of_gram[gram] for gram in grams & self.rows_of_gram.keys()))
        shares = {}
        for row, count in hits.items():
            if count >= self.needed[row]:
                part = len(self.grams[row] & grams) / len(self.grams[row])
                if part >= self.share:
                    shares[row] = part
        return shares
