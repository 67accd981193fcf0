"""What answers are worth beside the references: all measures of an evaluation, from pairs of texts.

`score_answers` gives them under the names of `catalogue`. Base and tuned answers are scored against the
same references, so whatever is decided by the references (are they labels, JSON objects, Chinese?)
is decided alike for both.
"""

from collections import Counter
from collections.abc import Sequence

import numpy
from numpy.typing import ArrayLike

from lockstep.evaluation import bleu_chrf, json_answers, label_answers, measures
from lockstep.evaluation.catalogue import scale
from lockstep.evaluation.measures import Measure
from lockstep.text import normalise

FEWEST_IN_LOOP = 8  # units of a text, below which it is too short to be called a loop


def score_answers(
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
        predictions, references: one text of each per row, in the same order.
        finish_reasons: of each answer, from the server; only "stop" is an answer that ended by itself.
        output_tokens: how many tokens each answer has.
        seconds: how long each answer took.
        nats: (rows,) the sum of −log p over the tokens of each *reference*.
        tokens: (rows,) how many tokens each reference has.

    Raises:
        ValueError: not the same number of predictions and references.
    """
    pairs = list(zip(predictions, references, strict=True))
    figures = {
        **texts_alike(pairs),
        **label_answers.score_labels(predictions, references),
        **json_answers.score_fields(predictions, references),
        "bleu": bleu_chrf.bleu(predictions, references),
        "chrf": bleu_chrf.chrf(predictions, references),
        **variety(predictions),
        "output_characters": measures.mean([float(len(text)) for text in predictions], *scale("output_characters")),
    }
    if finish_reasons is not None:
        figures["stop_rate"] = measures.share([reason == "stop" for reason in finish_reasons], *scale("stop_rate"))
    if output_tokens is not None:
        figures["output_tokens"] = measures.mean(output_tokens, *scale("output_tokens"))
    if seconds is not None:
        figures["latency"] = measures.mean(seconds, *scale("latency"))
    if nats is not None and tokens is not None:
        figures["perplexity"] = measures.perplexity(nats, tokens, *scale("perplexity"))
    return figures


def texts_alike(pairs: Sequence[tuple[str, str]]) -> dict[str, Measure]:
    """exact_match, exact_match_normalised, token_f1 and rouge_l of (prediction, reference)."""
    equal = [prediction == reference for prediction, reference in pairs]
    equal_normalised = [
        normalise.normalise(prediction) == normalise.normalise(reference) for prediction, reference in pairs
    ]
    return {
        "exact_match": measures.share(equal, *scale("exact_match")),
        "exact_match_normalised": measures.share(equal_normalised, *scale("exact_match_normalised")),
        "token_f1": measures.mean([token_f1(*pair) for pair in pairs], *scale("token_f1")),
        "rouge_l": measures.mean([rouge_l(*pair) for pair in pairs], *scale("rouge_l")),
    }


def token_f1(prediction: str, reference: str) -> float:
    """The F1 of the tokens that two texts share, counted with repetition; each CJK character is a token.

    Where one of them has no token, 1 if the normalised texts are equal, otherwise 0. Unlike SQuAD's
    script it keeps English articles: answers need not be English.
    Source: Rajpurkar et al., SQuAD (2016); characters for Chinese as in CMRC 2018 (Cui et al., 2019).
    """
    predicted, expected = normalise.characters(prediction), normalise.characters(reference)
    if not predicted or not expected:
        return float(normalise.normalise(prediction) == normalise.normalise(reference))
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L's F-measure, 0 to 1, over `normalise.words`: what rouge-score gives with that tokenizer.

    0 where one of them has no word. Computed here because rouge-score's table takes minutes and
    gigabytes for a long answer.
    Source: Lin, ROUGE (2004).
    """
    predicted, expected = normalise.words(prediction), normalise.words(reference)
    if not predicted or not expected:
        return 0.0
    return 2 * normalise.common_length(predicted, expected) / (len(predicted) + len(expected))


def variety(predictions: Sequence[str]) -> dict[str, Measure]:
    """distinct_2, repetition_rate and loop_rate of answers.

    distinct_2 is `distinct`. repetition_rate is the mean of each answer's own share of repeated
    4-grams, so that one endless answer cannot outweigh the others. loop_rate is the share of
    answers of which at least half is one phrase over and over, which a person would call broken.
    """
    texts = [normalise.units(text) for text in predictions]
    looping = [len(units) >= FEWEST_IN_LOOP and 2 * normalise.longest_loop(units) >= len(units) for units in texts]
    return {
        "distinct_2": distinct(texts),
        "repetition_rate": measures.mean([normalise.repeated(units) for units in texts], *scale("repetition_rate")),
        "loop_rate": measures.share(looping, *scale("loop_rate")),
    }


def distinct(texts: Sequence[Sequence[str]], size: int = 2) -> Measure:
    """distinct-n: how many different n-grams all answers together have, divided by all their n-grams.

    It falls with the number of rows and the length of answers, so only answers to the same questions
    can be compared. A row drawn twice would bring nothing new and make the figure too small, so its
    interval comes from what it would be without each row.
    Source: Li et al., A Diversity-Promoting Objective Function (2016).

    Args:
        texts: each answer as a sequence of units.
        size: n.
    """
    counts = [normalise.ngrams(units, size) for units in texts]
    total = numpy.array([count.total() for count in counts], dtype=float)
    if not total.sum():
        return measures.mean([None] * len(texts), *scale("distinct_2"))
    rows_with: Counter[tuple[str, ...]] = Counter()  # n-gram → in how many rows it stands
    for count in counts:
        rows_with.update(count.keys())
    # n-grams that would be gone without the row
    unique = numpy.array([sum(rows_with[gram] == 1 for gram in count) for count in counts], dtype=float)
    value = len(rows_with) / total.sum()
    without = measures.quotient(len(rows_with) - unique, total.sum() - total)
    without = numpy.where(numpy.isnan(without), value, without)  # nan where no other row has an n-gram
    row_values = measures.quotient(numpy.array([len(count) for count in counts], dtype=float), total)
    return measures.from_jackknife(value, without, *scale("distinct_2"), row_values)
