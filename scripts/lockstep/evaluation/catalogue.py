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
        title: the name in words.
        meaning: one line for the report, below the title.
        in_terminal: whether stage 05 prints it; the report shows all.
    """

    better: int
    bounds: Bounds | None
    title: str
    meaning: str
    in_terminal: bool = False


# fmt: off
# ruff: noqa: E501 - a table: a measure is a line
ANSWERS = {
    # name in metrics.json:   Entry(better, bounds, title, meaning, in_terminal)
    "exact_match":            Entry(HIGHER, UNIT, "Exact match", "answers equal to the reference, character for character", True),
    "exact_match_normalised": Entry(HIGHER, UNIT, "Lenient match", "the same, ignoring case, width, spaces and punctuation at the ends"),
    "field_accuracy":         Entry(HIGHER, UNIT, "Right fields", "fields of the JSON references that the answers give with the same value", True),
    "field_missing":          Entry(LOWER, UNIT, "Missing fields", "fields of the references that the answers lack; lower is better"),
    "field_extra":            Entry(LOWER, UNIT, "Extra fields", "fields of the answers that the reference lacks; lower is better"),
    "json_valid":             Entry(HIGHER, UNIT, "Valid JSON", "answers that are JSON objects and nothing else"),
    "accuracy":               Entry(HIGHER, UNIT, "Right labels", "answers that name the right label", True),
    "macro_f1":               Entry(HIGHER, UNIT, "F1 by label", "precision and recall in one figure, averaged over labels: rare ones count as much as frequent ones"),
    "micro_f1":               Entry(HIGHER, UNIT, "F1 of all labels", "precision and recall in one figure, over all labels together"),
    "token_f1":               Entry(HIGHER, UNIT, "Shared words", "words that answer and reference share, in any order; in Chinese characters"),
    "rouge_l":                Entry(HIGHER, UNIT, "ROUGE-L", "longest common subsequence of words: what answer and reference share in the same order", True),
    "chrf":                   Entry(HIGHER, PERCENT, "chrF", "character sequences shared with the reference, 0 to 100; fits free text in any language", True),
    "bleu":                   Entry(HIGHER, PERCENT, "BLEU", "word sequences shared with the reference, 0 to 100", True),
    "perplexity":             Entry(LOWER, None, "Perplexity", "how much the reference answers surprise the model; 1 is not at all; lower is better", True),
    "stop_rate":              Entry(HIGHER, UNIT, "Ended answers", "answers that ended by themselves and were not cut off at the token limit", True),
    "repetition_rate":        Entry(LOWER, UNIT, "Repetition", "repeated 4-grams of an answer; lower is better", True),
    "loop_rate":              Entry(LOWER, UNIT, "Loops", "answers that mostly repeat one phrase; lower is better"),
    "distinct_2":             Entry(HIGHER, UNIT, "Variety", "different word pairs among all word pairs of the answers"),
    "output_tokens":          Entry(NEITHER, None, "Tokens", "length of an answer in tokens"),
    "output_characters":      Entry(NEITHER, None, "Characters", "length of an answer in characters"),
    "latency":                Entry(NEITHER, None, "Seconds", "seconds per answer, under load"),
}
# What must not be forgotten: text that has nothing to do with the training rows.
FORGETTING = {
    "general_questions":      Entry(HIGHER, UNIT, "General knowledge", "questions of general knowledge answered correctly"),
    "prose_perplexity":       Entry(LOWER, None, "Perplexity of prose", "how much plain texts surprise the model; lower is better"),
}
# fmt: on
CATALOGUE = ANSWERS | FORGETTING


def scale(name: str) -> tuple[int, Bounds | None]:
    """A measure's direction and bounds, as the functions of `measures` take them.

    Raises:
        KeyError: the measure is not listed here.
    """
    return CATALOGUE[name].better, CATALOGUE[name].bounds


def title(name: str) -> str:
    """A measure's name in words; of one that an older file holds and that is no longer listed, its own."""
    return CATALOGUE[name].title if name in CATALOGUE else name.replace("_", " ")


def in_order(names: set[str]) -> list[str]:
    """Names of measures in the order of the catalogue; those of an older file that it no longer lists come last."""
    return [name for name in CATALOGUE if name in names] + sorted(names - CATALOGUE.keys())
