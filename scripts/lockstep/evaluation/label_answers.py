"""Answers that are labels: accuracy and F1 where the wanted answers are few, short and come again and again."""

from collections.abc import Sequence

import numpy

from lockstep.evaluation import measures
from lockstep.evaluation.measures import HIGHER, Array, Measure, quotient
from lockstep.text import normalise

LONGEST = 40  # characters of a label
MOST = 50  # labels
EACH = 5  # rows for each label, on average


def labels(references: Sequence[str]) -> list[str]:
    """The labels (normalised, in order), if the wanted answers are labels; else none.

    They are if there are 2 to MOST different ones, each with 1 to LONGEST characters, and on
    average at least EACH rows for each.
    """
    found = sorted({normalise.normalise(text) for text in references})
    if not 2 <= len(found) <= min(MOST, len(references) // EACH):
        return []
    return found if all(1 <= len(label) <= LONGEST for label in found) else []


def measure(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Measure]:
    """accuracy, macro_f1 and micro_f1; nothing where the wanted answers are no labels.

    An answer that is no label counts as none given: it costs recall, and no label's precision, so
    micro_f1 is above accuracy where such answers are many. A label that no row wants has no F1.
    """
    known = labels(references)
    if not known:
        return {}
    said, wanted = ([normalise.normalise(text) for text in side] for side in (predictions, references))
    ours, theirs = (
        numpy.array([[text == label for label in known] for text in side], float) for side in (said, wanted)
    )
    rows = numpy.stack([ours * theirs, ours, theirs], axis=1).reshape(len(references), -1)
    right = [one == other for one, other in zip(said, wanted, strict=True)]
    values = numpy.array(right, dtype=float)
    return {
        "accuracy": measures.share(right),
        "macro_f1": Measure(rows, macro_of, HIGHER, (0.0, 1.0), values),
        "micro_f1": Measure(rows, micro_of, HIGHER, (0.0, 1.0), values),
    }


def _parts(sums: Array) -> tuple[Array, Array, Array]:
    """(…, 3·labels) → hits, answers and wanted, (…, labels) each."""
    hits, said, wanted = numpy.split(sums, 3, axis=-1)
    return hits, said, wanted


def macro_of(sums: Array) -> Array:
    """The mean F1 of the labels that are wanted."""
    hits, said, wanted = _parts(sums)
    each = numpy.where(wanted > 0, quotient(2 * hits, said + wanted), 0.0)
    return quotient(numpy.nan_to_num(each).sum(axis=-1), (wanted > 0).sum(axis=-1))


def micro_of(sums: Array) -> Array:
    """F1 of all labels' hits together."""
    hits, said, wanted = (part.sum(axis=-1) for part in _parts(sums))
    return quotient(2 * hits, said + wanted)
