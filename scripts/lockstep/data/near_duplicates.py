"""Rows that stand twice: byte for byte, or nearly (MinHash over character n-grams)."""

import hashlib
import unicodedata
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from lockstep.data.conversation_row import Row, canonical
from lockstep.text.cjk import is_han

if TYPE_CHECKING:
    import numpy

PERMUTATIONS = 128
BANDS = 32  # of four values each: a pair of similarity 0.7 shares a band with probability 0.9998
NEIGHBOURS = 8  # with which a text is compared in each band
BATCH = 1024  # texts signed at a time
GRAMS = 2**21  # and n-grams of them


def key(row: Row) -> bytes:
    """16 bytes that stand for a row's content."""
    return hashlib.blake2b(canonical(row).encode(), digest_size=16).digest()


class Sieve:
    """Lets the first of equal rows pass, and tells why a later one should not.

    Args:
        drop: the `data.drop` setting.
        similar: name of a near duplicate → name of the first of its kind.
        alike: whether two rows of one kind, by name, are near duplicates of each other, and not only of the first.
    """

    def __init__(
        self, drop: Collection[str], similar: Mapping[str, str], alike: Callable[[str, str], bool] = lambda *_: True
    ) -> None:
        self.drop, self.similar, self.alike = drop, similar, alike
        self._splits: dict[bytes, tuple[str, ...]] = {}
        self._kept = dict.fromkeys(similar.values(), "")  # first of its kind → the one that passed

    def fault(self, row: Row, split: str) -> tuple[str, str] | None:
        """The reason's code and what exactly, or None. Ask for rows that are otherwise fit to be kept."""
        mark = key(row)
        before = self._splits.get(mark, ())
        self._splits[mark] = before if split in before else (*before, split)
        elsewhere = [other for other in before if other != split]
        if elsewhere and "in_two_splits" in self.drop:
            return "in_two_splits", f"stands in {elsewhere[0]}, too"
        if split in before and "duplicate" in self.drop:
            return "duplicate", f"of an earlier row in {split}"
        leader = self.similar.get(row.name, row.name)
        if leader in self._kept:
            passed = self._kept[leader] = self._kept[leader] or row.name
            if passed != row.name and (passed == leader or self.alike(passed, row.name)):
                return "near_duplicate", f"of {passed}"
        return None


def shingles(text: str) -> set[str]:
    """The character n-grams of a text, blind to width, case and spaces.

    Two characters from a Chinese one on, which is about a word, as rows are short; four elsewhere.
    """
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    text = "".join(text.casefold().split())
    if text.isascii():
        return {text[place : place + 4] for place in range(max(1, len(text) - 3))}
    return {text[place : place + (2 if is_han(char) else 4)] for place, char in enumerate(text)} or {""}


class Signatures:
    """MinHash signatures of many texts: 512 bytes each, whatever their length.

    Source: Broder, On the resemblance and containment of documents (1997); rensa's hashing.
    """

    def __init__(self) -> None:
        self._waiting: list[set[str]] = []
        self._grams = 0
        self._done: list[numpy.ndarray] = []

    def add(self, text: str) -> None:
        found = shingles(text)
        self._waiting.append(found)
        self._grams += len(found)
        if len(self._waiting) == BATCH or self._grams > GRAMS:
            self._sign()

    def _sign(self) -> None:
        import numpy
        from rensa import RMinHash

        digests = RMinHash.digests_from_token_sets(
            [list(found) for found in self._waiting], num_perm=PERMUTATIONS, seed=1
        )
        self._done.append(numpy.asarray(digests, dtype=numpy.uint32))
        self._waiting, self._grams = [], 0

    def alike(self, one: int, other: int) -> float:
        """The estimated Jaccard similarity of two texts, once `clusters` was asked."""
        (signed,) = self._done
        return float((signed[one] == signed[other]).mean())

    def clusters(self, similarity: float, progress: Callable[[Any], Any] = iter) -> list[list[int]]:
        """Groups of texts (by the order in which they were added) that are near duplicates.

        A text joins the group of an earlier one that shares a band of its signature and whose
        estimated Jaccard similarity is at least `similarity` (standard error at most 0.045).

        Args:
            progress: wraps what is gone through, to show a bar.
        """
        import numpy

        if self._waiting:
            self._sign()
        if not self._done:
            return []
        signed = numpy.concatenate(self._done)
        self._done = [signed]
        leader = numpy.arange(len(signed))

        def root(place: int) -> int:
            while leader[place] != place:
                leader[place] = leader[leader[place]]
                place = leader[place]
            return place

        for band in progress(numpy.split(signed, BANDS, axis=1)):
            values = numpy.ascontiguousarray(band).view([("", band.dtype)] * band.shape[1]).ravel()
            order = numpy.argsort(values, kind="stable")
            values = values[order]
            # each is compared with a few before it in its bucket: a bucket of many costs no square
            for step in range(1, NEIGHBOURS + 1):
                early, late = order[:-step], order[step:]
                near = (values[:-step] == values[step:]) & (leader[early] != leader[late])
                early, late = early[near], late[near]
                close = (signed[early] == signed[late]).mean(axis=1) >= similarity
                for one, other in zip(early[close], late[close], strict=True):
                    first, second = sorted((root(one), root(other)))
                    leader[second] = first
        groups: dict[int, list[int]] = {}
        for place in numpy.flatnonzero(leader != numpy.arange(len(leader))):
            groups.setdefault(int(root(place)), []).append(int(place))
        return [sorted({first, *rest}) for first, rest in sorted(groups.items())]
