"""Answers that are labels: accuracy and F1 where the references are few, short and recur."""

from collections.abc import Sequence

import numpy

from lockstep.evaluation import measures
from lockstep.evaluation.catalogue import scale
from lockstep.evaluation.measures import Array, Measure, quotient
from lockstep.text import normalise

LONGEST = 40  # characters of a label
MOST = 50  # different labels
EACH = 5  # rows for each label, on average


def labels(references: Sequence[str]) -> list[str]:
    """The different labels, normalised and sorted; empty where the references are not labels.

    They are labels if there are 2 to MOST different ones of 1 to LONGEST characters each, with at
    least EACH rows for a label on average.
    """
    distinct = sorted({normalise.normalise(text) for text in references})
    if not 2 <= len(distinct) <= min(MOST, len(references) // EACH):
        return []
    return distinct if all(1 <= len(label) <= LONGEST for label in distinct) else []


def score_labels(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Measure]:
    """accuracy, macro_f1 and micro_f1; empty where the references are not labels.

    An answer that is none of the labels counts as no answer: it costs recall and nobody's precision, so
    micro_f1 exceeds accuracy where there are many such answers. A label that no reference has, has no F1.
    """
    known = labels(references)
    if not known:
        return {}
    predicted = [normalise.normalise(text) for text in predictions]
    expected = [normalise.normalise(text) for text in references]
    answered, asked = _one_hot(predicted, known), _one_hot(expected, known)
    statistics = numpy.stack([answered * asked, answered, asked], axis=1).reshape(len(references), -1)
    correct = [prediction == reference for prediction, reference in zip(predicted, expected, strict=True)]
    row_values = numpy.array(correct, dtype=float)
    return {
        "accuracy": measures.share(correct, *scale("accuracy")),
        "macro_f1": Measure(statistics, macro_f1_from_sums, *scale("macro_f1"), row_values),
        "micro_f1": Measure(statistics, micro_f1_from_sums, *scale("micro_f1"), row_values),
    }


def _one_hot(texts: Sequence[str], known: Sequence[str]) -> Array:
    """(rows, labels): 1 where the row's text is that label."""
    columns = {label: column for column, label in enumerate(known)}
    table = numpy.zeros((len(texts), len(known)))
    for row, text in enumerate(texts):
        if text in columns:
            table[row, columns[text]] = 1
    return table


def _split(sums: Array) -> tuple[Array, Array, Array]:
    """(…, 3·labels) → hits, answers and references of each label, (…, labels) each."""
    hits, answered, asked = numpy.split(sums, 3, axis=-1)
    return hits, answered, asked


def macro_f1_from_sums(sums: Array) -> Array:
    """The mean F1 of the labels that references have, (…, 3·labels) → (…)."""
    hits, answered, asked = _split(sums)
    f1 = numpy.where(asked > 0, quotient(2 * hits, answered + asked), 0.0)
    return quotient(numpy.nan_to_num(f1).sum(axis=-1), (asked > 0).sum(axis=-1))


def micro_f1_from_sums(sums: Array) -> Array:
    """F1 of the hits of all labels together, (…, 3·labels) → (…)."""
    hits, answered, asked = (part.sum(axis=-1) for part in _split(sums))
    return quotient(2 * hits, answered + asked)
