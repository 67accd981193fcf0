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
NAME = "_name"  # ends the placeholders whose values are one word,
ONE_WORD = r"[^\s:;,]+"  # such as a path
BETWEEN = re.compile(r"(; |: )")
COMMAND = re.compile(r"`[^`]*`")  # to be pasted, in no language
MOST_PIECES = 10  # of what is filled into a message
DEPTH = 6  # messages inside messages


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
    """The translation of a line, or of what is filled into one; None where there is none."""
    core = text.strip()
    if depth > DEPTH or len(core) > LONGEST:
        return None
    if " " not in core:  # most single words are names and codes
        return _words().get(core)
    translation = _whole(core, depth) or _listed(core, depth) or _with_remark(core, depth)
    if translation is None and depth:  # what is filled in may be of several pieces, of which some are names
        translation = _in_pieces(core, depth)
    return None if translation is None else text.replace(core, translation, 1)


def _whole(text: str, depth: int) -> str | None:
    """The translation of the message that a text is: of several that fit, the one that leaves the fewest words over."""
    best: tuple[int, str] | None = None
    for entry in _entries():
        match = entry.pattern.fullmatch(text) if entry.anchor in text else None
        if match is None:
            continue
        values, words = {}, 0  # words that stay English
        for name, value in match.groupdict().items():
            values[name] = value
            if name.endswith(WORD):
                values[name] = _phrases().get(value, value)
            elif name not in entry.commands:
                inner = _line(value, depth + 1)
                values[name] = value if inner is None else inner.strip()
                words += COMMAND.sub("", value).strip(" ,").count(" ") if inner is None else 0
        if words and entry.weight < SPECIFIC:  # half English, half Chinese reads worse than English
            continue
        if best is None or words < best[0]:
            best = words, entry.translation.format(**values)
        if not words:
            break
    return best and best[1]


def _listed(text: str, depth: int) -> str | None:
    """The translation of messages in a row; None where one of them has none."""
    for between, joined in SEPARATORS.items():
        parts = text.split(between)
        translations: list[str] = []
        for part in parts if len(parts) > 1 else ():
            translation = _line(part, depth + 1)
            if translation is None:
                break
            translations.append(translation)
        if translations and len(translations) == len(parts):
            return joined.join(translations)
    return None


def _in_pieces(text: str, depth: int) -> str | None:
    """A text with those of its pieces translated that are messages, the longest ones first; None where none is."""
    pieces = BETWEEN.split(text)  # piece, separator, piece, …
    if not 1 < len(pieces) <= 2 * MOST_PIECES:
        return None
    result, start, changed = "", 0, False
    while start < len(pieces):
        for end in range(len(pieces), start, -2):
            piece = "".join(pieces[start:end])
            translation = _whole(piece, depth + 1) if " " in piece else None
            if translation is not None:
                break
        changed = changed or translation is not None
        result += piece if translation is None else translation
        result += SEPARATORS[pieces[end]] if end < len(pieces) else ""
        start = end + 1
    return result if changed else None


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
    fillings = [f"(?P<{name}>{ONE_WORD if name.endswith(NAME) else '.*?'})" for name in pieces[1::2]]
    pattern = "".join(fillings[number // 2] if number % 2 else re.escape(piece) for number, piece in enumerate(pieces))
    weight = sum(char.isalpha() for char in "".join(literals))
    introduces = weight < SPECIFIC and text.endswith(": {message}")
    commands = frozenset(re.findall(r"`\{(\w+)\}`", text))
    return _Entry(weight, introduces, max(literals, key=len), re.compile(pattern, re.DOTALL), commands, translation)


@lru_cache(maxsize=1)
def _words() -> dict[str, str]:
    """Messages of a single word."""
    alone = [entry for entry in _entries() if entry.anchor.isalpha() and not entry.pattern.groups]
    return {entry.anchor: entry.translation for entry in alone}


@lru_cache(maxsize=1)
def _phrases() -> dict[str, str]:
    phrases: dict[str, str] = json.loads((CATALOGUES / CHINESE / PAGES).read_text(encoding="utf-8"))
    return phrases
