"""Text as the measures see it: normalised, as words, as units, and how much of it repeats."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from lockstep.text.cjk import HAN, HAN_OR_KANA, KANA

WORDS = re.compile(rf"[{HAN}]+|[{KANA}]|[^\W_{HAN}{KANA}]+|[^\w\s]")
UNITS = re.compile(rf"[{HAN}{KANA}]|[^\W_{HAN}{KANA}]+|[^\s]")
LONGEST_WORD = 40  # letters; what is longer is a loop without spaces, and is taken letter by letter
MEANT = frozenset("-%‰#@&/\\_")  # punctuation that changes what an answer means: -5, 50%, C#
LONGEST_PERIOD = 64  # units of a phrase that is looked for in loops


def normalise(text: str) -> str:
    """The text for comparing short answers: "  Ｐａｒｉｓ。" and "paris" are the same.

    In this order: Unicode NFKC (full-width letters and digits become plain ones); casefold; every
    run of whitespace becomes one space; whitespace and punctuation (Unicode's P*) go from both
    ends, but for the signs in MEANT. A text of nothing but punctuation keeps it.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    first, last = 0, len(text)
    while first < last and _is_edge(text[first]):
        first += 1
    while last > first and _is_edge(text[last - 1]):
        last -= 1
    return text[first:last] or text


def _is_edge(char: str) -> bool:
    return char == " " or (char not in MEANT and unicodedata.category(char)[0] == "P")


def words(text: str) -> list[str]:
    """Words, blind to width and case: runs of Han characters as rjieba cuts them, kana one by one, else letters
    and digits between anything else; emoji and other pictures count, punctuation does not.

    For text in ASCII these are the tokens of rouge-score's own tokenizer without a stemmer.
    """
    import rjieba

    return [word for run in _runs(text) for word in (rjieba.cut(run) if HAN_OR_KANA.match(run) else [run])]


def characters(text: str) -> list[str]:
    """`words`, but with every Han character for itself.

    For sharing tokens with a short answer: a dictionary cuts 北京 and 北京大学 into words of which
    none is shared, though one answer holds the other.
    """
    return [token for run in _runs(text) for token in (run if HAN_OR_KANA.match(run) else [run])]


def _runs(text: str) -> Iterator[str]:
    for run in WORDS.findall(unicodedata.normalize("NFKC", text).casefold()):
        if run.isalnum() or (not run.isascii() and unicodedata.category(run[0]) == "So"):
            yield run


def units(text: str) -> list[str]:
    """What a loop is made of: CJK characters, words, and each sign of punctuation; spaces alone do not count."""
    found: list[str] = []
    for token in UNITS.findall(text.casefold()):
        found += token if len(token) > LONGEST_WORD else [token]
    return found


def ngrams(tokens: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    """How often each run of `size` tokens occurs."""
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))


def repeated(tokens: Sequence[str], size: int = 4) -> float:
    """The share of a text's n-grams that already occurred before in it; 0 where it has none.

    Source: seq-rep-n of Welleck et al., Neural Text Generation with Unlikelihood Training (2020),
    who use n = 4: by chance three in a row repeat in plain prose, four seldom do.
    """
    counts = ngrams(tokens, size)
    return 1 - len(counts) / counts.total() if counts else 0.0


def longest_loop(tokens: Sequence[str]) -> int:
    """How many units the longest loop covers: a phrase that follows itself at least twice, three times in all.

    Phrases of up to LONGEST_PERIOD units are looked for: time grows with the length alone.
    """
    longest = 0
    for period in range(1, min(LONGEST_PERIOD, len(tokens) // 3) + 1):
        run = 0
        for one, later in zip(tokens, tokens[period:], strict=False):
            run = run + 1 if one == later else 0
            if run >= 2 * period and run + period > longest:
                longest = run + period
    return longest


def common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    Bits of one integer are a column of the usual table, so a row of it costs one addition.
    Source: Hyyrö, Bit-parallel LCS-length computation revisited (2004).
    """
    places: dict[str, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(one)) - 1
    column = full
    for token in other:
        matched = column & places.get(token, 0)
        column = ((column + matched) | (column - matched)) & full
    return len(one) - column.bit_count()
