"""Phrases that repeat in a loop, as small tuned models write them when they do not find the end of an answer."""

import re

from lockstep.text.cjk import HAN, HANGUL, KANA

LONGEST = 200  # words of a phrase, or characters where the script has no spaces
_CJK = f"[{HAN}{KANA}{HANGUL}]"
_WORD = re.compile(rf"{_CJK}|(?:(?!{_CJK})[^\W_])+(?:['’_-](?:(?!{_CJK})[^\W_])+)*")
_PAUSE = re.compile(r"[^\w\s]|\n")  # what ends a clause
_DATA = re.compile(r"```|^(?: {4}|\t)|^\s*[{\[<|]", re.MULTILINE)


def remove(text: str) -> str:
    """The text with every phrase that is repeated directly, as in a loop, kept only once.

    Between the copies there may be spaces and punctuation. The first copy stays as it was written,
    followed by the punctuation after the last one.

    Many repetitions are meant: 哈哈哈哈, ha ha, 研究研究, very very very, 7 7 7. So a phrase needs
    two different letters and must occur too often in a row for emphasis (see `_fewest_copies`); where
    it occurs only twice, both copies must be whole clauses or sentences.
    An answer that looks like data or code (a fence, indented lines, a line that begins with a bracket
    or a bar) is returned unchanged: equal lines may be right there.
    """
    if _DATA.search(text):
        return text
    words = list(_WORD.finditer(text))
    keys = [word.group().casefold() for word in words]
    kept: list[str] = []
    place = copied = 0  # the next word; the end of the text that is in `kept` or was left out
    while place < len(words):
        length, times = _loop(keys, place)
        first, last = place + length - 1, place + length * times - 1
        if times == 2 and not (_ends_clause(text, words, first) and _ends_clause(text, words, last)):
            length = times = 0
        if times:
            kept.append(text[copied : words[first].end()])
            copied = words[last].end()
        place += length * times or 1
    return "".join([*kept, text[copied:]])


def _ends_clause(text: str, words: list[re.Match[str]], place: int) -> bool:
    """Whether punctuation, a line's end or the text's end follows a word."""
    if place + 1 == len(words):
        return True
    return _PAUSE.search(text, words[place].end(), words[place + 1].start()) is not None


def _loop(keys: list[str], place: int) -> tuple[int, int]:
    """(words of the phrase, copies in a row) of the loop that begins at a word; (0, 0) where none does."""
    units: list[int] = []  # lengths of shorter phrases that repeat here: `ha` four times is not `ha ha` twice
    for length in range(1, min(LONGEST, (len(keys) - place) // 2) + 1):
        if keys[place + length] != keys[place]:
            continue
        phrase = keys[place : place + length]
        if keys[place + length : place + 2 * length] != phrase:
            continue
        if any(length % unit == 0 and phrase == phrase[:unit] * (length // unit) for unit in units):
            continue
        units.append(length)
        fewest, times = _fewest_copies(phrase), 2
        if fewest is None:
            continue
        while keys[place + length * times : place + length * (times + 1)] == phrase:
            times += 1
        if times >= fewest:
            return length, times
    return 0, 0


def _fewest_copies(phrase: list[str]) -> int | None:
    """How often a phrase must occur in a row to be a loop and not emphasis; None where it never is one.

    The shorter a phrase is, the more often people repeat it; Chinese doubles and triples words more than English does.
    """
    letters, words = "".join(phrase), len(phrase)
    if len(set(letters)) < 2 or letters.isdigit():
        return None
    if re.search(_CJK, letters):
        return 6 if words < 4 else 3 if words < 6 else 2
    if len(letters) < 4:
        return None
    return 5 if words < 3 else 2
