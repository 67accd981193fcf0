"""What differs between two texts, as pieces that a report can colour."""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

from lockstep.text import cjk

Kind = Literal["same", "left", "right"]
Spans = list[tuple[Kind, str]]

SAME: Kind = "same"
LEFT: Kind = "left"  # only in the first text
RIGHT: Kind = "right"  # only in the second
PIECES = re.compile(rf"\s*(?:[{cjk.HAN}{cjk.KANA}]|[^\W{cjk.HAN}{cjk.KANA}]+|\S)|\s+")
MOST = 1_500  # pieces of each text that are compared one by one
EQUAL = 100_000  # pairs of equal pieces, above which frequent ones are no place to begin at: loops take cubic time


def spans(left: str, right: str) -> Spans:
    """The pieces of both texts, in order: SAME in both, LEFT only in the first, RIGHT only in the second.

    SAME and LEFT pieces in a row are the first text again, SAME and RIGHT ones the second. Pieces are
    CJK characters, words and single signs, each with the spaces before it. What both texts begin and end with is
    the same, whatever its length; of what is between, the first MOST pieces of each are compared,
    and the rest counts as different, so that a text of any length takes about a second at most.
    """
    ours, theirs = PIECES.findall(left), PIECES.findall(right)
    start = _alike(ours, theirs)
    end = _alike(ours[start:][::-1], theirs[start:][::-1])
    found: Spans = [(SAME, "".join(ours[:start]))]
    ours, theirs, last = ours[start : len(ours) - end], theirs[start : len(theirs) - end], ours[len(ours) - end :]
    counts = Counter(ours[:MOST]), Counter(theirs[:MOST])
    loops = sum(count * counts[1][piece] for piece, count in counts[0].items()) > EQUAL
    matcher = SequenceMatcher(None, ours[:MOST], theirs[:MOST], autojunk=loops)
    for kind, i, j, k, m in matcher.get_opcodes():
        one, other = "".join(ours[i:j]), "".join(theirs[k:m])
        found += [(SAME, one)] if kind == "equal" else [(LEFT, one), (RIGHT, other)]
    found += [(LEFT, "".join(ours[MOST:])), (RIGHT, "".join(theirs[MOST:])), (SAME, "".join(last))]
    return _joined(found)


def against(wanted: str, answers: Sequence[str]) -> list[Spans]:
    """For each answer what differs from the wanted one: LEFT is missing in it, RIGHT too much."""
    return [spans(wanted, answer) for answer in answers]


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many pieces both begin with."""
    count = 0
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _joined(found: Spans) -> Spans:
    """Without empty pieces; between two SAME pieces at most one LEFT and then one RIGHT."""
    joined: Spans = []
    for same, group in groupby((piece for piece in found if piece[1]), lambda piece: piece[0] == SAME):
        pieces = list(group)
        for kind in (SAME,) if same else (LEFT, RIGHT):
            joined.append((kind, "".join(text for one, text in pieces if one == kind)))
    return [piece for piece in joined if piece[1]]
