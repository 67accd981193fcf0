"""BLEU and chrF as sacrebleu defines them, from row statistics that can be summed over any selection of rows."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy

from lockstep.evaluation.catalogue import scale
from lockstep.evaluation.measures import Array, Measure, quotient
from lockstep.text import cjk

ORDERS = 4  # BLEU's longest n-gram, in words
CHAR_ORDERS = 6  # chrF's longest n-gram, in characters
BETA = 2  # how many times as much chrF weighs recall as precision
KANA = re.compile(f"[{cjk.KANA}]")


def tokenization(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer for these references: one for all rows, because a corpus score has a single signature.

    `zh` as soon as one reference holds CJK characters: it separates these and leaves Latin words to
    the rules of `13a`, so mixed rows, and English rows beside Chinese ones, come out right as well.
    `char` where most references hold Japanese kana, which `zh` does not separate. Otherwise `13a`.
    """
    if 2 * sum(bool(KANA.search(text)) for text in references) > len(references):
        return "char"
    return "zh" if any(cjk.HAN_OR_KANA.search(text) for text in references) else "13a"


def bleu(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """BLEU of 0 to 100: over all rows with sacrebleu's defaults, of each row with its `effective_order`.

    A row's statistics, (10,): lengths of prediction and reference in words, then matched n-grams and all
    n-grams of the prediction, for 1 to 4 words each.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric: Any = BLEU(tokenize=tokenization(references), effective_order=True)
    statistics, row_values = numpy.zeros((len(references), 2 + 2 * ORDERS)), numpy.zeros(len(references))
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        sentence = metric.sentence_score(prediction, [reference])
        statistics[row] = [sentence.sys_len, sentence.ref_len, *sentence.counts, *sentence.totals]
        row_values[row] = sentence.score
    return Measure(statistics, bleu_from_sums, *scale("bleu"), row_values)


def bleu_from_sums(sums: Array) -> Array:
    """BLEU of summed statistics, (…, 10) → (…), with sacrebleu's default smoothing.

    The first order without a match counts as half a match, the next as a quarter: precision 1/(2^k·total).
    Source: Papineni et al., BLEU (2002); Chen and Cherry, smoothing method 3 (2014).
    """
    predicted, expected = sums[..., 0], sums[..., 1]
    matched, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    missed = numpy.cumsum(matched == 0, axis=-1)
    precision = quotient(numpy.where(matched > 0, matched, 0.5**missed), total)
    brevity = numpy.exp(numpy.minimum(0.0, 1 - quotient(expected, predicted)))
    with numpy.errstate(invalid="ignore"):  # nan where a total is 0: replaced by 0 below
        score = 100 * brevity * numpy.exp(numpy.log(precision).mean(axis=-1))
    score = numpy.where((matched > 0).any(axis=-1) & (total > 0).all(axis=-1), score, 0.0)
    return numpy.where(predicted + expected > 0, score, numpy.nan)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """chrF2 of 0 to 100 with sacrebleu's defaults: n-grams of 1 to 6 characters, without spaces.

    A row's statistics, (18,): for each length, n-grams of the prediction, of the reference, and shared ones.
    """
    statistics = numpy.zeros((len(references), 3 * CHAR_ORDERS))
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        statistics[row] = _character_ngrams("".join(prediction.split()), "".join(reference.split()))
    return Measure(statistics, chrf_from_sums, *scale("chrf"), numpy.nan_to_num(chrf_from_sums(statistics)))


def _character_ngrams(prediction: str, reference: str) -> list[int]:
    counts = []
    for size in range(1, CHAR_ORDERS + 1):
        predicted, expected = _ngrams(prediction, size), _ngrams(reference, size)
        # as sacrebleu does: a length for which the reference is too short counts on neither side
        counts += [predicted.total() if expected else 0, expected.total(), (predicted & expected).total()]
    return counts


def _ngrams(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))


def chrf_from_sums(sums: Array) -> Array:
    """chrF of summed statistics, (…, 18) → (…): precision and recall are means over the lengths that both sides have.

    Source: Popović, chrF (2015).
    """
    predicted, expected, shared = (sums[..., start::3] for start in range(3))
    both = (predicted > 0) & (expected > 0)
    orders = both.sum(axis=-1)
    precision = quotient(numpy.where(both, quotient(shared, predicted), 0.0).sum(axis=-1), orders)
    recall = quotient(numpy.where(both, quotient(shared, expected), 0.0).sum(axis=-1), orders)
    score = numpy.nan_to_num(100 * (1 + BETA**2) * quotient(precision * recall, BETA**2 * precision + recall))
    return numpy.where((predicted + expected).sum(axis=-1) > 0, score, numpy.nan)
