"""BLEU and chrF by sacrebleu's definitions, from counts of each row that can be summed over any choice of rows."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy

from lockstep.evaluation.measures import HIGHER, Array, Measure, quotient
from lockstep.text import cjk

ORDERS = 4  # BLEU's longest n-gram, in words
CHAR_ORDERS, BETA = 6, 2  # chrF's longest n-gram, in characters; how much recall counts
KANA = re.compile(f"[{cjk.KANA}]")


def tokenization(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer for these references, one for all rows, so that there is one signature.

    `zh` as soon as one holds CJK characters: it parts these, and leaves Latin words to the rules
    of `13a`, so mixed rows and English rows beside Chinese ones are right too. `char` where most
    hold Japanese kana, which `zh` does not part. Else `13a`.
    """
    if 2 * sum(bool(KANA.search(text)) for text in references) > len(references):
        return "char"
    return "zh" if any(cjk.HAN_OR_KANA.search(text) for text in references) else "13a"


def bleu(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """BLEU of 0 to 100: of all rows with sacrebleu's defaults, of each row with its `effective_order`.

    A row's statistics: lengths of prediction and reference, matched n-grams and all n-grams of 1 to 4 words.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric: Any = BLEU(tokenize=tokenization(references), effective_order=True)
    rows, values = numpy.zeros((len(references), 2 + 2 * ORDERS)), numpy.zeros(len(references))
    for place, (said, wanted) in enumerate(zip(predictions, references, strict=True)):
        found = metric.sentence_score(said, [wanted])
        rows[place] = [found.sys_len, found.ref_len, *found.counts, *found.totals]
        values[place] = found.score
    corpus: Any = BLEU(tokenize=tokenization(references))
    corpus.corpus_score(["a"], [["a"]])  # the signature is there after a first use
    return Measure(rows, bleu_of, HIGHER, (0.0, 100.0), values, signature=str(corpus.get_signature()))


def bleu_of(sums: Array) -> Array:
    """BLEU of summed statistics, (…, 10) → (…), with sacrebleu's default smoothing.

    An order without a match counts as half a match, the next as a quarter: precision 1/(2^k·total).
    Source: Papineni et al., BLEU (2002); Chen and Cherry, smoothing method 3 (2014).
    """
    said, wanted = sums[..., 0], sums[..., 1]
    matched, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    missed = numpy.cumsum(matched == 0, axis=-1)
    precision = quotient(numpy.where(matched > 0, matched, 0.5**missed), total)
    brevity = numpy.exp(numpy.minimum(0.0, 1 - quotient(wanted, said)))
    with numpy.errstate(invalid="ignore"):
        found = 100 * brevity * numpy.exp(numpy.log(precision).mean(axis=-1))
    found = numpy.where((matched > 0).any(axis=-1) & (total > 0).all(axis=-1), found, 0.0)
    return numpy.where(said + wanted > 0, found, numpy.nan)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """chrF2 of 0 to 100, sacrebleu's defaults: n-grams of 1 to 6 characters, spaces left out.

    A row's statistics: for each length, n-grams of the prediction, of the reference, and shared ones.
    """
    from sacrebleu.metrics.chrf import CHRF

    rows = numpy.zeros((len(references), 3 * CHAR_ORDERS))
    for place, (said, wanted) in enumerate(zip(predictions, references, strict=True)):
        rows[place] = _shared("".join(said.split()), "".join(wanted.split()))
    metric: Any = CHRF()
    metric.corpus_score(["a"], [["a"]])
    values = numpy.nan_to_num(chrf_of(rows))
    return Measure(rows, chrf_of, HIGHER, (0.0, 100.0), values, signature=str(metric.get_signature()))


def _shared(said: str, wanted: str) -> list[int]:
    found = []
    for size in range(1, CHAR_ORDERS + 1):
        ours, theirs = (
            Counter(text[start : start + size] for start in range(len(text) - size + 1)) for text in (said, wanted)
        )
        # as sacrebleu counts: nothing was said of a length that the reference does not have
        found += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return found


def chrf_of(sums: Array) -> Array:
    """chrF of summed statistics, (…, 18) → (…): means over the lengths that both sides have.

    Source: Popović, chrF (2015).
    """
    said, wanted, shared = (sums[..., start::3] for start in range(3))
    both = (said > 0) & (wanted > 0)
    orders = both.sum(axis=-1)
    precision = quotient(numpy.where(both, quotient(shared, said), 0.0).sum(axis=-1), orders)
    recall = quotient(numpy.where(both, quotient(shared, wanted), 0.0).sum(axis=-1), orders)
    found = numpy.nan_to_num(100 * (1 + BETA**2) * quotient(precision * recall, BETA**2 * precision + recall))
    return numpy.where((said + wanted).sum(axis=-1) > 0, found, numpy.nan)
