"""Every measure of an evaluation: which direction is better, which values it can have, and how a report explains it.

This is the only list. `scores.score_answers` computes measures under these names, eval/metrics.json uses them as
keys, and stage 05 and the report show them in this order. To add a measure, add its line here and its
computation there; tests/unit/evaluation/test_catalogue.py fails as long as one of the two is missing.
"""

from dataclasses import dataclass

Bounds = tuple[float, float]
HIGHER, LOWER, NEITHER = 1, -1, 0  # which values are better
UNIT: Bounds = (0.0, 1.0)
PERCENT: Bounds = (0.0, 100.0)


@dataclass(frozen=True)
class Entry:
    """What is known of a measure before any answer is.

    Attributes:
        better: HIGHER, LOWER, or NEITHER, which gives a difference but no verdict.
        bounds: the least and the largest possible value; None where there is no limit.
        meaning: for the report, beside the name.
        in_terminal: whether stage 05 prints it; the report shows all.
    """

    better: int
    bounds: Bounds | None
    meaning: str
    in_terminal: bool = False


# fmt: off
ANSWERS = {
    # name in metrics.json:   Entry(better, bounds, meaning, in_terminal)
    "exact_match":            Entry(HIGHER, UNIT, "answers equal to the reference", True),
    "exact_match_normalised": Entry(HIGHER, UNIT, "the same, ignoring case, width, spaces and punctuation at the ends"),
    "field_accuracy":         Entry(HIGHER, UNIT, "fields of JSON answers that are right", True),
    "field_missing":          Entry(LOWER, UNIT, "fields of the references that the answers lack; lower is better"),
    "field_extra":            Entry(LOWER, UNIT, "fields of the answers that the reference lacks; lower is better"),
    "json_valid":             Entry(HIGHER, UNIT, "answers that are JSON objects"),
    "accuracy":               Entry(HIGHER, UNIT, "labels that are right", True),
    "macro_f1":               Entry(HIGHER, UNIT, "mean F1 of the labels"),
    "micro_f1":               Entry(HIGHER, UNIT, "F1 over all labels together"),
    "token_f1":               Entry(HIGHER, UNIT, "tokens shared with the reference"),
    "rouge_l":                Entry(HIGHER, UNIT, "longest common subsequence of words", True),
    "chrf":                   Entry(HIGHER, PERCENT, "character n-grams shared with the reference", True),
    "bleu":                   Entry(HIGHER, PERCENT, "word n-grams shared with the reference", True),
    "perplexity":             Entry(LOWER, None, "of the references; lower is better", True),
    "stop_rate":              Entry(HIGHER, UNIT, "answers that ended by themselves", True),
    "repetition_rate":        Entry(LOWER, UNIT, "repeated 4-grams; lower is better", True),
    "loop_rate":              Entry(LOWER, UNIT, "answers that mostly repeat one phrase; lower is better"),
    "distinct_2":             Entry(HIGHER, UNIT, "different word pairs among all word pairs"),
    "output_tokens":          Entry(NEITHER, None, "length of an answer"),
    "output_characters":      Entry(NEITHER, None, "length of an answer"),
    "latency":                Entry(NEITHER, None, "seconds per answer, under load"),
}
# What must not be forgotten: text that has nothing to do with the training rows.
FORGETTING = {
    "general_questions":      Entry(HIGHER, UNIT, "questions of general knowledge answered correctly"),
    "prose_perplexity":       Entry(LOWER, None, "of plain texts; lower is better"),
}
# fmt: on
CATALOGUE = ANSWERS | FORGETTING


def scale(name: str) -> tuple[int, Bounds | None]:
    """A measure's direction and bounds, as the functions of `measures` take them.

    Raises:
        KeyError: the measure is not listed here.
    """
    return CATALOGUE[name].better, CATALOGUE[name].bounds


def in_order(names: set[str]) -> list[str]:
    """Names of measures in the order of the catalogue; those of an older file that it no longer lists come last."""
    return [name for name in CATALOGUE if name in names] + sorted(names - CATALOGUE.keys())
