"""Messages and pages in the reader's language: English stands in the code, Chinese in the catalogues of `zh/`.

A catalogue maps English texts with {placeholders} to their translations. What has no entry stays English. Pages ask
for a `phrase` by its English text. Messages are composed in English where they arise, and are looked up as a whole
where they leave the program (`translated`): code that raises or returns them need not know of any language. What
programs read (JSON keys, file names, reason codes, logs) stays English.
"""

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ENGLISH, CHINESE = LANGUAGES = ("en", "zh")
HTML = {ENGLISH: "en", CHINESE: "zh-CN"}
CATALOGUES = Path(__file__).parent
PAGES = "pages.json"  # phrases of pages; all other catalogues hold messages
VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")  # gettext's, the first that is set decides
PLACEHOLDER = re.compile(r"\{(\w+)\}")
REMARK = re.compile(r"(?P<message>.+) (?P<remark>\([^()]+\))", re.DOTALL)
LONGEST = 4_000  # characters of a message that is looked up
SPECIFIC = 8  # letters from which an entry stands for one message; one with fewer only joins others
SEPARATORS = {"; ": "；", ", ": "，", ": ": "："}  # between messages that make up one
WORD = "_word"  # ends the placeholders whose values are words of ours, such as `dequantized`, as the pages say them
DEPTH = 4  # messages inside messages


def current() -> str:
    """The language that messages are shown in, by the environment: `use` changes it, too."""
    value = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")
    return CHINESE if value.lower().startswith(CHINESE) else ENGLISH


def use(language: str) -> None:
    """Show messages in `en` or `zh` from now on, also those of programs that are started from here."""
    os.environ["LANGUAGE"] = language


def phrase(text: str, /, **values: object) -> str:
    """A page's text in the current language, with its placeholders filled in."""
    chosen = _phrases().get(text, text) if current() == CHINESE else text
    return chosen.format(**values) if values else chosen


def html_code() -> str:
    """The current language as the attribute `lang` of a page names it."""
    return HTML[current()]


def phrases() -> Mapping[str, str]:
    """English → the current language, of all texts of pages; empty for English."""
    return _phrases() if current() == CHINESE else {}


def translated(message: str) -> str:
    """A finished message in the current language, line by line; a line without an entry stays as it is."""
    if current() == ENGLISH:
        return message
    return "\n".join(_line(line, 0) or line for line in message.split("\n"))


class _Entry(NamedTuple):
    """A message of a catalogue.

    Attributes:
        weight: letters outside of its placeholders.
        introduces: whether it is a word before another message, such as "note: ".
        anchor: its longest piece without a placeholder, by which most messages are told apart at once.
        pattern: matches the whole message.
        commands: placeholders in backticks, whose values are to be pasted and belong to no language.
        translation: with the same placeholders.
    """

    weight: int
    introduces: bool
    anchor: str
    pattern: re.Pattern[str]
    commands: frozenset[str]
    translation: str


def _line(text: str, depth: int) -> str | None:
    """The translation of a line, or of a message inside one; None where there is none."""
    core = text.strip()
    if depth > DEPTH or len(core) > LONGEST or " " not in core:  # single words are names and codes
        return None
    for entry in _entries():
        match = entry.pattern.fullmatch(core) if entry.anchor in core else None
        if match is None:
            continue
        values, whole = {}, True
        for name, value in match.groupdict().items():
            if name in entry.commands or name.endswith(WORD):
                values[name] = value if name in entry.commands else _phrases().get(value, value)
                continue
            inner = _line(value, depth + 1)
            values[name] = value if inner is None else inner.strip()
            whole = whole and (inner is not None or " " not in value.strip())
        if entry.weight < SPECIFIC and not whole:
            continue  # half English, half Chinese reads worse than English
        return text.replace(core, entry.translation.format(**values), 1)
    return _listed(core, depth) or _with_remark(core, depth)


def _listed(text: str, depth: int) -> str | None:
    """The translation of messages in a row; None where one of them has none."""
    for between, joined in SEPARATORS.items():
        parts = text.split(between)
        if len(parts) > 1:
            translations = [_line(part, depth + 1) for part in parts]
            if all(translations):
                return joined.join(filter(None, translations))
    return None


def _with_remark(text: str, depth: int) -> str | None:
    """The translation of a message and of the remark in parentheses at its end; None where that has none."""
    match = REMARK.fullmatch(text)
    remark = match and _line(match["remark"], depth + 1)
    return match and remark and (_line(match["message"], depth + 1) or match["message"]) + remark


@lru_cache(maxsize=1)
def _entries() -> list[_Entry]:
    """All messages: those that only introduce another one first, then by how much text they have."""
    entries = []
    for file in sorted((CATALOGUES / CHINESE).glob("*.json")):
        if file.name != PAGES:
            entries += [_entry(*pair) for pair in json.loads(file.read_text(encoding="utf-8")).items()]
    return sorted(entries, key=lambda entry: (not entry.introduces, -entry.weight))


def _entry(text: str, translation: str) -> _Entry:
    pieces = PLACEHOLDER.split(text)  # literal, name, literal, …
    literals = pieces[::2]
    pattern = "".join(f"(?P<{piece}>.*?)" if number % 2 else re.escape(piece) for number, piece in enumerate(pieces))
    weight = sum(char.isalpha() for char in "".join(literals))
    introduces = weight < SPECIFIC and text.endswith(": {message}")
    commands = frozenset(re.findall(r"`\{(\w+)\}`", text))
    return _Entry(weight, introduces, max(literals, key=len), re.compile(pattern, re.DOTALL), commands, translation)


@lru_cache(maxsize=1)
def _phrases() -> dict[str, str]:
    phrases: dict[str, str] = json.loads((CATALOGUES / CHINESE / PAGES).read_text(encoding="utf-8"))
    return phrases
