"""What differs between two texts, as pieces that a report can colour."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal

from lockstep.text import cjk

Kind = Literal["same", "left", "right"]
Spans = list[tuple[Kind, str]]

SAME: Kind = "same"
LEFT: Kind = "left"  # only in the first text
RIGHT: Kind = "right"  # only in the second
# CJK characters, words and single signs, each with the spaces before it; spaces at the end are a piece of their own
PIECES = re.compile(rf"\s*(?:[{cjk.HAN}{cjk.KANA}]|[^\W{cjk.HAN}{cjk.KANA}]+|\S)|\s+")
MOST = 1_500  # pieces of each text that are compared one by one
ALIKE = 0.6  # share of the characters of both texts that they have in common
EQUAL = 100_000  # pairs of equal pieces beyond which matches must not start at frequent ones: loops take cubic time


def spans(left: str, right: str) -> Spans:
    """The pieces of both texts, in order: SAME in both, LEFT only in the first, RIGHT only in the second.

    SAME and LEFT pieces joined are the first text, SAME and RIGHT ones the second. Between two SAME
    pieces stand at most one LEFT and one RIGHT. The beginning and the end that both texts share are SAME,
    however long they are; of what lies between, the first MOST pieces of each text are compared and the
    rest counts as different, so that texts of any length take about a second at most.
    """
    ours, theirs = PIECES.findall(left), PIECES.findall(right)
    start = _common_prefix(ours, theirs)
    end = _common_prefix(ours[start:][::-1], theirs[start:][::-1])
    head, tail = ours[:start], ours[len(ours) - end :]
    ours, theirs = ours[start : len(ours) - end], theirs[start : len(theirs) - end]
    middle = [*_compared(ours[:MOST], theirs[:MOST]), (LEFT, "".join(ours[MOST:])), (RIGHT, "".join(theirs[MOST:]))]
    return _joined([(SAME, "".join(head)), *middle, (SAME, "".join(tail))])


def _common_prefix(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """With how many equal pieces both begin."""
    count = 0
    for left, right in zip(ours, theirs, strict=False):
        if left != right:
            break
        count += 1
    return count


def _compared(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[Kind, str]]:
    counts, other_counts = Counter(ours), Counter(theirs)
    equal_pairs = sum(count * other_counts[piece] for piece, count in counts.items())
    matcher = SequenceMatcher(None, ours, theirs, autojunk=equal_pairs > EQUAL)
    for operation, left_start, left_end, right_start, right_end in matcher.get_opcodes():
        if operation == "equal":
            yield SAME, "".join(ours[left_start:left_end])
        else:
            yield LEFT, "".join(ours[left_start:left_end])
            yield RIGHT, "".join(theirs[right_start:right_end])


def _joined(pieces: Sequence[tuple[Kind, str]]) -> Spans:
    """Without empty pieces; between two SAME pieces at most one LEFT and then one RIGHT."""
    joined: Spans = []
    pending: dict[Kind, str] = {
        SAME: "",
        LEFT: "",
        RIGHT: "",
    }  # since the kind last changed between SAME and the others

    def flush(*kinds: Kind) -> None:
        for kind in kinds:
            if pending[kind]:
                joined.append((kind, pending[kind]))
                pending[kind] = ""

    for kind, text in pieces:
        if text:
            flush(*((LEFT, RIGHT) if kind == SAME else (SAME,)))
            pending[kind] += text
    flush(SAME, LEFT, RIGHT)
    return joined


def alike(pieces: Spans) -> bool:
    """Whether two texts have so much in common that marks help to read them: at least ALIKE of all their characters."""
    sizes = Counter[Kind]()
    for kind, text in pieces:
        sizes[kind] += len("".join(text.split()))
    common = 2 * sizes[SAME]
    return common >= ALIKE * (common + sizes[LEFT] + sizes[RIGHT])
