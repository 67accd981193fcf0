"""What kind of answers a test split holds, which decides the measures that a report begins with.

Whether an answer is right can be seen where it is short, a label or JSON. Free text has countless right answers: there
an exact match says nothing, and what counts is how likely the references are, whether answers end, and how close they
come.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lockstep.evaluation import bootstrap, label_answers, measures
from lockstep.evaluation.catalogue import scale
from lockstep.text import json_text, normalise

JSON, SHORT, TEXT = "json", "short", "text"  # of a single reference
LABELS, MIXED = "labels", "mixed"  # of a split, beside these
MOST = 0.8  # share of the rows that makes their kind that of the split
LONGEST_SHORT = 8  # words, or Chinese characters, with their punctuation
SENTENCE = re.compile(r"[。！？!?…~～]|\.\s*$")
FEWEST_IN_SENTENCE = 4  # units
# Kind of a split → the measures that its report begins with; those that a split lacks are left out.
HEADLINE = {
    LABELS: ("accuracy", "macro_f1", "stop_rate"),
    JSON: ("field_accuracy", "exact_match", "stop_rate"),
    SHORT: ("exact_match", "token_f1", "stop_rate"),
    TEXT: ("perplexity", "stop_rate", "chrf"),
    MIXED: ("perplexity", "stop_rate", "chrf"),
}


def kind_of(reference: str) -> str:
    """JSON (an object or array), SHORT (a few words that are no sentence), or TEXT."""
    text = reference.strip()
    if text[:1] in ("{", "["):
        try:
            if isinstance(json_text.loads(text), dict | list):
                return JSON
        except (ValueError, RecursionError):
            pass
    units = len(normalise.units(text))
    is_sentence = units >= FEWEST_IN_SENTENCE and SENTENCE.search(text)
    return SHORT if units <= LONGEST_SHORT and "\n" not in text and not is_sentence else TEXT


def kind_of_split(references: Sequence[str]) -> str:
    """LABELS, or the kind of most references, or MIXED. JSON and short answers together are SHORT."""
    counts, enough = Counter(map(kind_of, references)), MOST * len(references)
    if label_answers.labels(references) and counts[TEXT] < enough:  # sentences that recur are no labels
        return LABELS
    if counts[JSON] >= enough:
        return JSON
    if counts[JSON] + counts[SHORT] >= enough:
        return SHORT
    return TEXT if counts[TEXT] >= enough else MIXED


def summary(references: Sequence[str], base: Sequence[str], tuned: Sequence[str], seed: int) -> dict[str, Any]:
    """`answers` of eval/metrics.json: the kind of the split, its rows by kind, and where it is mixed, `checked`.

    `checked` compares the exact match of base and tuned over the rows whose answers are short or JSON.
    """
    kinds, kind = [kind_of(reference) for reference in references], kind_of_split(references)
    result: dict[str, Any] = {"kind": kind, "rows": {name: kinds.count(name) for name in (JSON, SHORT, TEXT)}}
    if kind == MIXED:
        sides = []
        for answers in (base, tuned):
            rows = zip(kinds, answers, references, strict=True)
            equal = [None if row_kind == TEXT else answer == reference for row_kind, answer, reference in rows]
            sides.append({"exact_match": measures.share(equal, *scale("exact_match"))})
        result["checked"] = bootstrap.compare(sides[0], sides[1], seed)
    return result
