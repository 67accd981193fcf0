"""Answers as a person reads them: as they were given, with code set apart, and marks where two texts are alike."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lockstep.evaluation import answer_kinds, bleu_chrf, text_diff
from lockstep.text import cjk

ROWS = 300  # answers on the page
CHARACTERS = 4000  # of one text
LONG = 600  # characters, or
LINES = 16  # lines, beyond which a text is folded
SIDES = ("base", "tuned")
CLEARLY = 5.0  # points of chrF by which one answer is closer to the reference than another
# (base is right, tuned is right) → the name by which the page filters and sorts
OUTCOMES = {(True, True): "both", (False, True): "gained", (True, False): "lost", (False, False): "neither"}
# Markdown that is shown as what it is, signs included: fenced code, code in a line, bold, and headings
MARKUP = re.compile(
    r"(?P<fence>^ {0,3}```[^\n]*\n.*?(?:^ {0,3}```[ \t]*$|\Z))|(?P<code>`[^`\n]+`)|(?P<bold>\*\*[^*\n]+\*\*)"
    r"|(?P<heading>^#{1,6} [^\n]+$)",
    re.MULTILINE | re.DOTALL,
)
SCRIPTS = (("ja", f"[{cjk.KANA}]"), ("ko", f"[{cjk.HANGUL}]"), ("zh", f"[{cjk.HAN}]"))


class Text(NamedTuple):
    """A text for the page.

    Attributes:
        pieces: (kind, text): plain, fence, code, bold or heading; or same, left and right beside a reference.
        language: zh, ja or ko, which decides on glyphs; empty for others.
        is_long: whether it is folded.
        left_out: characters that the page does not show.
    """

    pieces: list[tuple[str, str]]
    language: str
    is_long: bool
    left_out: int


def shown(text: str, reference: str | None = None) -> Text:
    """A text with its code set apart; with its differences marked where it is much like a reference, but not equal."""
    short = text[:CHARACTERS]
    pieces: list[tuple[str, str]] = list(_styled(short))
    if reference is not None and short != reference[:CHARACTERS]:
        spans = text_diff.spans(reference[:CHARACTERS], short)
        if text_diff.alike(spans):
            pieces = list(spans)
    is_long = len(short) > LONG or short.count("\n") >= LINES
    return Text(pieces, language(short), is_long, len(text) - len(short))


def language(text: str) -> str:
    """zh, ja or ko, by the characters of a text; empty where it has none of these scripts."""
    return next((name for name, pattern in SCRIPTS if re.search(pattern, text)), "")


def _styled(text: str) -> Iterator[tuple[str, str]]:
    start = 0
    for match in MARKUP.finditer(text):
        if match.start() > start:
            yield "plain", text[start : match.start()]
        yield str(match.lastgroup), match[0]
        start = match.end()
    if start < len(text):
        yield "plain", text[start:]


def rows(predictions: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Each row of predictions.jsonl, the first ROWS of them with what the page shows.

    Adds `number`, `right` by side, `outcome`, `closer` (points of chrF by which tuned is closer to the reference than
    base), and `shown`: the Text of the question's messages, the reference and each side.

    Args:
        kind: of the split; in free text, outcome is gained or lost where one answer is clearly closer.
    """
    with predictions.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            texts = {side: row[side].get("answer") for side in SIDES}
            right = {side: texts[side] is not None and texts[side].strip() == row["wanted"].strip() for side in SIDES}
            row |= {"number": number, "right": right, "outcome": OUTCOMES[right["base"], right["tuned"]]}
            if number < ROWS:  # later rows are only counted
                answers = [texts[side] or "" for side in SIDES]
                base, tuned = bleu_chrf.chrf(answers, [row["wanted"]] * 2).row_values
                row["closer"] = round(float(tuned - base), 1)
                if kind in (answer_kinds.TEXT, answer_kinds.MIXED) and row["outcome"] == "neither":
                    row["outcome"] = _closer(row["closer"])
                row["shown"] = {side: shown(texts[side] or "", row["wanted"]) for side in SIDES}
                row["shown"] |= {"wanted": shown(row["wanted"])}
                row["questions"] = [(message["role"], shown(message["content"] or "")) for message in row["messages"]]
            yield row


def _closer(points: float) -> str:
    if points > CLEARLY:
        return "closer"
    return "farther" if points < -CLEARLY else "neither"
