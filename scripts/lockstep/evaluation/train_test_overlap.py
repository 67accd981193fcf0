"""Which evaluation rows a model may have seen in training: the same, or nearly."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from lockstep.data.near_duplicates import shingles
from lockstep.text import normalise

SHARE = 0.75  # of an evaluation text's n-grams that stand in one training text: nearly the same
SHORTEST = 8  # n-grams; a shorter text is only compared as a whole, as one other character changes too many of them
LISTED = 100  # row numbers that a report names

Pair = tuple[str, str]  # what is asked, and the wanted answer


@dataclass
class Overlap:
    """Evaluation row → the first training row that shares it; for near ones → (training row, share of n-grams).

    A near row is one whose prompt and answer are both near those of one training row. Rows made
    by a template can be near without being a leak; an equal prompt is one, whatever its answer.
    """

    rows: int
    training_rows: int = 0
    prompts: dict[int, int] = field(default_factory=dict)
    answers: dict[int, int] = field(default_factory=dict)
    pairs: dict[int, int] = field(default_factory=dict)
    near_prompts: dict[int, tuple[int, float]] = field(default_factory=dict)
    near_answers: dict[int, tuple[int, float]] = field(default_factory=dict)
    near_pairs: dict[int, tuple[int, float]] = field(default_factory=dict)

    @property
    def leaked(self) -> list[int]:
        """Evaluation rows whose prompt was trained on."""
        return sorted(self.prompts)

    def summary(self) -> dict[str, Any]:
        """Counts of evaluation rows, and the first numbers as [evaluation row, training row]."""
        kinds = {name: vars(self)[name] for name in ("prompts", "answers", "pairs")}
        near = {name: {row: hit[0] for row, hit in vars(self)[name].items()}
                for name in ("near_prompts", "near_answers", "near_pairs")}  # fmt: skip
        counted = {
            name: {"rows": len(found), "first": [list(pair) for pair in sorted(found.items())[:LISTED]]}
            for name, found in (kinds | near).items()
        }
        return {"rows": self.rows, "training_rows": self.training_rows, "leaked": len(self.leaked), **counted}


def find(training: Iterable[Pair], evaluation: Sequence[Pair], share: float = SHARE) -> Overlap:
    """What the evaluation rows share with the training rows, which are read once and not kept.

    Texts are equal if they are so normalised. `near_` leaves out the rows that are equal in the same part.

    Args:
        share: from which containment (Broder, 1997) on a text is near: its n-grams that stand in one training text.
    """
    found = Overlap(len(evaluation))
    prompts, answers = (_Known([pair[part] for pair in evaluation], share) for part in (0, 1))
    for number, (prompt, answer) in enumerate(training):
        found.training_rows += 1
        same_prompt, same_answer = prompts.same(prompt), answers.same(answer)
        near_prompt, near_answer = prompts.near(prompt), answers.near(answer)
        for rows, into in (
            (same_prompt, found.prompts),
            (same_answer, found.answers),
            (set(same_prompt).intersection(same_answer), found.pairs),
        ):
            for row in rows:
                into.setdefault(row, number)
        both = {row: min(near_prompt[row], near_answer[row]) for row in near_prompt.keys() & near_answer.keys()}
        for hits, best in (
            (near_prompt, found.near_prompts),
            (near_answer, found.near_answers),
            (both, found.near_pairs),
        ):
            for row, part in hits.items():
                if part > best.get(row, (0, 0.0))[1]:
                    best[row] = number, part
    for near, same in (("near_prompts", "prompts"), ("near_answers", "answers"), ("near_pairs", "pairs")):
        setattr(found, near, {row: hit for row, hit in vars(found)[near].items() if row not in vars(found)[same]})
    return found


class _Known:
    """Evaluation texts, to look training texts up in.

    Only the rarer half of a text's n-grams is looked up: of a near text all but (1 − share) of
    all n-grams are there, so at least `need` of these are, and what has fewer is never compared.
    """

    def __init__(self, known: Sequence[str], share: float) -> None:
        self.share = share
        self.whole: dict[str, list[int]] = {}
        for row, text in enumerate(known):
            self.whole.setdefault(normalise.normalise(text), []).append(row)
        self.grams = [shingles(text) for text in known]
        often = Counter(chain.from_iterable(self.grams))
        self.places: dict[str, list[int]] = {}
        self.need: list[int] = []
        for row, grams in enumerate(self.grams):
            rare = sorted(grams, key=lambda gram: (often[gram], gram))[: math.ceil(len(grams) / 2)]
            self.need.append(len(rare) - math.floor((1 - share) * len(grams) + 1e-9))
            for gram in rare if len(grams) >= SHORTEST else ():
                self.places.setdefault(gram, []).append(row)

    def same(self, text: str) -> list[int]:
        return self.whole.get(normalise.normalise(text), [])

    def near(self, text: str) -> dict[int, float]:
        """Row → share of its n-grams in the text, where that is enough."""
        grams = shingles(text)
        hits = Counter(chain.from_iterable(self.places[gram] for gram in grams & self.places.keys()))
        found = {}
        for row, count in hits.items():
            if count >= self.need[row]:
                part = len(self.grams[row] & grams) / len(self.grams[row])
                if part >= self.share:
                    found[row] = part
        return found
