"""What answers are worth beside the wanted ones: every measure of an evaluation, from pairs of texts.

`measure` gives all of them by the names that eval/metrics.json uses. Base and tuned answers are
measured by the same references, so what is asked of the references (are they labels, JSON objects,
Chinese?) is the same for both.
"""

from collections import Counter
from collections.abc import Sequence

import numpy
from numpy.typing import ArrayLike

from lockstep.evaluation import bleu_chrf, json_answers, label_answers, measures
from lockstep.evaluation.measures import HIGHER, LOWER, NEITHER, Measure
from lockstep.text import normalise


def measure(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    finish_reasons: Sequence[str | None] | None = None,
    output_tokens: Sequence[int | None] | None = None,
    seconds: Sequence[float | None] | None = None,
    nats: ArrayLike | None = None,
    tokens: ArrayLike | None = None,
) -> dict[str, Measure]:
    """All measures that the arguments allow, by name.

    Args:
        finish_reasons: of each answer, as the server gives it; only "stop" is an answer that ended by itself.
        output_tokens: how many tokens each answer has; seconds: how long it took.
        nats, tokens: (rows,) sums of −log p over each *wanted* answer, and how many tokens it has.
    """
    pairs = list(zip(predictions, references, strict=True))
    found = {
        "exact_match": measures.share([said == wanted for said, wanted in pairs]),
        "exact_match_normalised": measures.share(
            [normalise.normalise(said) == normalise.normalise(wanted) for said, wanted in pairs]
        ),
        "token_f1": measures.mean([token_f1(said, wanted) for said, wanted in pairs]),
        **label_answers.measure(predictions, references),
        **json_answers.measure(predictions, references),
        "rouge_l": measures.mean([rouge_l(said, wanted) for said, wanted in pairs]),
        "bleu": bleu_chrf.bleu(predictions, references),
        "chrf": bleu_chrf.chrf(predictions, references),
        **variety(predictions),
        "output_characters": measures.mean([float(len(said)) for said in predictions], NEITHER, None),
    }
    if finish_reasons is not None:
        found["stop_rate"] = measures.share([reason == "stop" for reason in finish_reasons])
    if output_tokens is not None:
        found["output_tokens"] = measures.mean(output_tokens, NEITHER, None)
    if seconds is not None:
        found["latency"] = measures.mean(seconds, NEITHER, None)
    if nats is not None and tokens is not None:
        found["perplexity"] = measures.perplexity(nats, tokens)
    return found


def token_f1(said: str, wanted: str) -> float:
    """The F1 of the tokens that two texts share, counted with repetition; CJK characters are a token each.

    Where one of them has no token, 1 if the normalised texts are equal and else 0. Unlike SQuAD's
    it keeps the articles: answers need not be English.
    Source: Rajpurkar et al., SQuAD (2016); characters for Chinese as in CMRC 2018 (Cui et al., 2019).
    """
    ours, theirs = normalise.characters(said), normalise.characters(wanted)
    if not ours or not theirs:
        return float(normalise.normalise(said) == normalise.normalise(wanted))
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def rouge_l(said: str, wanted: str) -> float:
    """ROUGE-L's F-measure, 0 to 1, over `normalise.words`: what rouge-score gives with that tokenizer.

    0 where one of them has no word. Computed here, because rouge-score's table of a long answer
    takes minutes and gigabytes.
    Source: Lin, ROUGE (2004).
    """
    ours, theirs = normalise.words(said), normalise.words(wanted)
    return 2 * normalise.common_length(ours, theirs) / (len(ours) + len(theirs)) if ours and theirs else 0.0


def variety(predictions: Sequence[str]) -> dict[str, Measure]:
    """distinct_2, repetition_rate and loop_rate of answers.

    distinct_2 is `distinct`. repetition_rate is the mean of the answers' own shares of repeated
    4-grams, so that one endless answer cannot outweigh the others. loop_rate is the share of
    answers at least half of which is one phrase over and over, which a person would call broken.
    """
    units = [normalise.units(said) for said in predictions]
    looping = [len(one) >= 8 and 2 * normalise.longest_loop(one) >= len(one) for one in units]
    return {
        "distinct_2": distinct(units),
        "repetition_rate": measures.mean([normalise.repeated(one) for one in units], LOWER),
        "loop_rate": measures.share(looping, LOWER),
    }


def distinct(units: Sequence[Sequence[str]], size: int = 2) -> Measure:
    """distinct-n: how many different n-grams all answers together have, over all n-grams.

    It falls with the number of rows and the length of answers: comparable only between answers to
    the same questions. Rows drawn twice would bring nothing new and make it too small, so its
    interval comes from what it would be without each row.
    Source: Li et al., A Diversity-Promoting Objective Function (2016).
    """
    counts = [normalise.ngrams(one, size) for one in units]
    rows_with = Counter(gram for count in counts for gram in count)
    total = numpy.array([count.total() for count in counts], dtype=float)
    alone = numpy.array([sum(rows_with[gram] == 1 for gram in count) for count in counts], dtype=float)
    each = measures.quotient(numpy.array([len(count) for count in counts], dtype=float), total)
    if not total.sum():
        return measures.mean([None] * len(units))
    value = len(rows_with) / total.sum()
    without = measures.quotient(len(rows_with) - alone, total.sum() - total)
    return measures.linear(value, numpy.where(numpy.isnan(without), value, without), HIGHER, (0.0, 1.0), each)
