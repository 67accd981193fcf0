"""Text as the evaluation measures see it: normalised, cut into words or units, and how much of it repeats."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from lockstep.text.cjk import HAN, HAN_OR_KANA, KANA

WORDS = re.compile(rf"[{HAN}]+|[{KANA}]|[^\W_{HAN}{KANA}]+|[^\w\s]")
UNITS = re.compile(rf"[{HAN}{KANA}]|[^\W_{HAN}{KANA}]+|[^\s]")
LONGEST_WORD = 40  # letters; anything longer is a loop without spaces, and is split into letters
MEANINGFUL = frozenset("-%‰#@&/\\_")  # punctuation that changes what an answer means: -5, 50%, C#
LONGEST_PERIOD = 64  # units in the longest phrase that is recognised as a loop


def normalise(text: str) -> str:
    """A text in the form in which short answers are compared: "  Ｐａｒｉｓ。" and "paris" are equal.

    The steps, in this order: Unicode NFKC (full-width letters and digits become plain ones); casefold; every run of
    whitespace becomes one space; whitespace and punctuation (Unicode's P*, except MEANINGFUL) are stripped from both
    ends. A text that is nothing but punctuation keeps it.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    first, last = 0, len(text)
    while first < last and _is_edge(text[first]):
        first += 1
    while last > first and _is_edge(text[last - 1]):
        last -= 1
    return text[first:last] or text


def _is_edge(char: str) -> bool:
    return char == " " or (char not in MEANINGFUL and unicodedata.category(char)[0] == "P")


def words(text: str) -> list[str]:
    """The words of a text, regardless of width and case.

    Runs of Han characters are segmented by rjieba, kana are taken one by one, and any other word is a run of letters
    and digits. Emoji and other pictographs count, punctuation does not. For ASCII text these are the tokens of
    rouge-score's own tokenizer without a stemmer.
    """
    import rjieba

    tokens: list[str] = []
    for run in _runs(text):
        tokens += rjieba.cut(run) if HAN_OR_KANA.match(run) else [run]
    return tokens


def characters(text: str) -> list[str]:
    """The same as `words`, but with every Han character as a token of its own.

    For overlap with a short answer: a dictionary segments 北京 and 北京大学 into words that have nothing in common,
    although one answer contains the other.
    """
    tokens: list[str] = []
    for run in _runs(text):
        tokens += run if HAN_OR_KANA.match(run) else [run]
    return tokens


def _runs(text: str) -> Iterator[str]:
    for run in WORDS.findall(unicodedata.normalize("NFKC", text).casefold()):
        if run.isalnum() or (not run.isascii() and unicodedata.category(run[0]) == "So"):
            yield run


def units(text: str) -> list[str]:
    """The units that loops are made of: CJK characters, words and punctuation marks, without whitespace."""
    parts: list[str] = []
    for token in UNITS.findall(text.casefold()):
        parts += token if len(token) > LONGEST_WORD else [token]
    return parts


def ngrams(tokens: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of `size` tokens occurs."""
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))


def repeated(tokens: Sequence[str], size: int = 4) -> float:
    """The share of a text's n-grams that occurred earlier in it; 0 for a text without any.

    Source: seq-rep-n of Welleck et al., Neural Text Generation with Unlikelihood Training (2020), who use n = 4: in
    plain prose three tokens in a row repeat by chance, four seldom do.
    """
    counts = ngrams(tokens, size)
    return 1 - len(counts) / counts.total() if counts else 0.0


def longest_loop(tokens: Sequence[str]) -> int:
    """How many units the longest loop covers, a loop being a phrase that stands at least three times in a row.

    Only phrases of up to LONGEST_PERIOD units are considered, so that time is linear in the length of the text.
    """
    longest = 0
    for period in range(1, min(LONGEST_PERIOD, len(tokens) // 3) + 1):
        run = 0
        for earlier, later in zip(tokens, tokens[period:], strict=False):
            run = run + 1 if earlier == later else 0  # units in a row that equal the unit one period before
            if run >= 2 * period and run + period > longest:
                longest = run + period
    return longest


def common_length(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    The bits of one integer hold a row of the usual table, so each token of `right` costs one addition.
    Source: Hyyrö, Bit-parallel LCS-length computation revisited (2004).
    """
    positions: dict[str, int] = {}  # token → a bit for each place where it stands in `left`
    for place, token in enumerate(left):
        positions[token] = positions.get(token, 0) | 1 << place
    all_bits = (1 << len(left)) - 1
    row = all_bits  # a zero bit: the subsequence grows by one at this place
    for token in right:
        matches = row & positions.get(token, 0)
        row = ((row + matches) | (row - matches)) & all_bits
    return len(left) - row.bit_count()
