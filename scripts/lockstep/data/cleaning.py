"""Cleaning steps. Those that change text are off unless asked for, and every change is on record."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lockstep.data.conversation_row import ConversationRow, with_contents
from lockstep.settings.schema import Data
from lockstep.text.cjk import is_han
from lockstep.text.unicode import drop_controls

# what decoders leave of bytes they could not read; 锟斤拷 is two such, read as GBK
_REPLACED = re.compile("\ufffd|锟斤拷")
_LOST = re.compile(r"\?{4,}")  # what encoders leave of characters they could not write
# fixes of ftfy that would change more than wrongly decoded characters
_KEEP = (
    "unescape_html",
    "remove_terminal_escapes",
    "fix_latin_ligatures",
    "fix_character_width",
    "uncurl_quotes",
    "fix_line_breaks",
    "remove_control_chars",
)


@dataclass(frozen=True)
class Change:
    """One message that a step changed."""

    step: str
    message: int
    before: str
    after: str


def repair_unicode(text: str) -> str:
    """Undo mis-decoded UTF-8 (`schÃ¶n` → `schön`) and nothing else: quotes, widths and Chinese punctuation stay."""
    import ftfy

    return str(ftfy.fix_text(text, ftfy.TextFixerConfig(**dict.fromkeys(_KEEP, False), normalization=None)))


def tidy_whitespace(text: str) -> str:
    """Line breaks as \\n, no spaces at line ends, at most one empty line in a row, and none around the text."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    text = "\n".join(line.rstrip(" \t\u3000") for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n").rstrip()


STEPS: dict[str, Callable[[str], str]] = {
    "unicode": repair_unicode,
    "control_characters": drop_controls,
    "whitespace": tidy_whitespace,
}


def clean(row: ConversationRow, steps: tuple[str, ...]) -> tuple[ConversationRow, list[Change]]:
    """The row after the steps, in the order of STEPS, and what they changed."""
    changes = []
    contents = [message["content"] for message in row.messages]
    for step, repair in STEPS.items():
        if step not in steps:
            continue
        for place, before in enumerate(contents):
            contents[place] = after = repair(before)
            if after != before:
                changes.append(Change(step, place, before, after))
    return (with_contents(row, contents) if changes else row), changes


def fault(row: ConversationRow, data: Data) -> tuple[str, str] | None:
    """Why a row must go by the settings: the reason's code and what exactly; or None."""
    if any(message["role"] == "user" and not message["content"].strip() for message in row.messages):
        return "empty_prompt", "after cleaning"
    for place in row.answers:
        text = row.messages[place]["content"]
        if not text.strip() and "tool_calls" not in row.messages[place]:
            return "empty_answer", "after cleaning"
        if "garbled" in data.drop and (what := next(garbled(text), None)):
            return "garbled", what
        size = len(text.strip())
        if size < data.min_answer_chars and "tool_calls" not in row.messages[place]:
            return "too_short", f"{size} characters"
        if data.max_answer_chars and size > data.max_answer_chars:
            return "answer_too_long", f"{size} characters"
    return None


def garbled(text: str) -> Iterator[str]:
    """What shows that a text was damaged by a wrong encoding, if anything."""
    if text.isascii():
        lost = sum(map(len, _LOST.findall(text)))
        if lost >= 6 and lost * 2 > len(text):
            yield "question marks in place of characters"
        return
    if match := _REPLACED.search(text):
        yield f"{match.group()!r}"
    from ftfy.badness import is_bad

    if is_bad(text):
        yield "UTF-8 read as another encoding"
    if _read_as_gbk(text):
        yield "UTF-8 read as GBK"


def _read_as_gbk(text: str) -> bool:
    """Whether a text's GBK bytes are mostly Chinese in UTF-8; those of true Chinese hardly ever are."""
    wide = sum(char > "\x7f" for char in text)
    decoded = text.encode("gbk", "ignore").decode("utf-8", "replace")
    han = sum(map(is_han, decoded))
    return wide >= 6 and han * 3 > wide and decoded.count("\ufffd") <= han
