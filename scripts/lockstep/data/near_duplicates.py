"""Rows that stand twice: byte for byte, or nearly (MinHash over character n-grams)."""

import hashlib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lockstep.data.conversation_row import ConversationRow, canonical
from lockstep.settings.schema import Data
from lockstep.text.cjk import is_han

if TYPE_CHECKING:
    import numpy

PERMUTATIONS = 128
BANDS = 32  # of four values each: a pair of similarity 0.7 shares a band with probability 0.9998
NEIGHBOURS = 8  # with which a text is compared in each band
BATCH = 1024  # texts signed at a time
GRAMS = 2**21  # and n-grams of them

Progress = Callable[[Any], Any]  # wraps what is iterated over, to show a bar


def content_key(row: ConversationRow) -> bytes:
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
        self._splits: dict[bytes, tuple[str, ...]] = {}  # content → the splits in which it has passed
        self._kept = dict.fromkeys(similar.values(), "")  # first of its kind → the row of that kind that has passed

    def fault(self, row: ConversationRow, split: str) -> tuple[str, str] | None:
        """The reason's code and its detail, or None. Ask only for rows that are otherwise fit to be kept."""
        key = content_key(row)
        before = self._splits.get(key, ())
        self._splits[key] = before if split in before else (*before, split)
        elsewhere = [other for other in before if other != split]
        if elsewhere and "in_two_splits" in self.drop:
            return "in_two_splits", f"stands in {elsewhere[0]}, too"
        if split in before and "duplicate" in self.drop:
            return "duplicate", f"of an earlier row in {split}"
        return self._near(row)

    def _near(self, row: ConversationRow) -> tuple[str, str] | None:
        leader = self.similar.get(row.name, row.name)
        if leader not in self._kept:
            return None
        # the leader itself may have been unfit: then the first fit row of its kind takes its place
        passed = self._kept[leader] = self._kept[leader] or row.name
        if passed != row.name and (passed == leader or self.alike(passed, row.name)):
            return "near_duplicate", f"of {passed}"
        return None


def build_sieve(rows: Iterable[ConversationRow], data: Data, progress: Progress = iter) -> Sieve:
    """The sieve that the settings ask for.

    Args:
        rows: all of them, in the order in which the sieve will be asked; read only where near duplicates are dropped.
        progress: wraps the search, to show a bar.
    """
    if "near_duplicate" not in data.drop:
        return Sieve(data.drop, {})
    least = data.near_duplicate_similarity or 1
    signatures = Signatures()
    names: list[str] = []
    terms: list[int] = []  # system message and tools, hashed: the same question under other terms is no duplicate
    for row in rows:
        signatures.add(row.dialogue)
        names.append(row.name)
        terms.append(hash((row.system, repr(row.tools))))
    leaders: dict[int, int] = {}
    for leader, *others in signatures.clusters(least, progress):
        for place in others:
            # a group is a chain: its ends may have little in common, so each row is compared with the first again
            if signatures.similarity(leader, place) >= least and terms[leader] == terms[place]:
                leaders[place] = leader
    places = {names[place]: place for place in leaders}
    return Sieve(
        data.drop,
        {names[place]: names[leader] for place, leader in leaders.items()},
        lambda name, other: signatures.similarity(places[name], places[other]) >= least,
    )


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
        self._signed: list[numpy.ndarray] = []  # blocks of [texts, PERMUTATIONS]

    @property
    def nbytes(self) -> int:
        """Bytes of all signatures."""
        return sum(block.nbytes for block in self._signed)

    def add(self, text: str) -> None:
        """Sign a text; its number is the count of texts before it."""
        grams = shingles(text)
        self._waiting.append(grams)
        self._grams += len(grams)
        if len(self._waiting) == BATCH or self._grams > GRAMS:
            self._sign()

    def _sign(self) -> None:
        import numpy
        from rensa import RMinHash

        sets = [list(grams) for grams in self._waiting]
        digests = RMinHash.digests_from_token_sets(sets, num_perm=PERMUTATIONS, seed=1)
        self._signed.append(numpy.asarray(digests, dtype=numpy.uint32))
        self._waiting, self._grams = [], 0

    def similarity(self, first: int, second: int) -> float:
        """The estimated Jaccard similarity of two texts, once `clusters` was called."""
        (signed,) = self._signed
        return float((signed[first] == signed[second]).mean())

    def clusters(self, similarity: float, progress: Progress = iter) -> list[list[int]]:
        """Groups of texts (by the order in which they were added) that are near duplicates.

        A text joins the group of an earlier one that shares a band of its signature and whose
        estimated Jaccard similarity is at least `similarity` (standard error at most 0.045).

        Args:
            progress: wraps the bands that are searched, to show a bar.
        """
        import numpy

        if self._waiting:
            self._sign()
        if not self._signed:
            return []
        signed = numpy.concatenate(self._signed)
        self._signed = [signed]
        groups = _Groups(len(signed))
        for band in progress(numpy.split(signed, BANDS, axis=1)):
            for early, late in _pairs_in_band(band, groups.leader):
                close = (signed[early] == signed[late]).mean(axis=1) >= similarity
                for first, second in zip(early[close], late[close], strict=True):
                    groups.join(first, second)
        return groups.lists()


def _pairs_in_band(band: "numpy.ndarray", leader: "numpy.ndarray") -> Iterator[tuple["numpy.ndarray", "numpy.ndarray"]]:
    """(earlier, later) numbers of texts that share the values of a band and are not in one group yet.

    Args:
        band: [texts, PERMUTATIONS / BANDS].
        leader: of each text; looked at anew for every step, as groups grow meanwhile.
    """
    import numpy

    # the values of a row as one, so that sorting brings equal rows side by side: these are a bucket
    values = numpy.ascontiguousarray(band).view([("", band.dtype)] * band.shape[1]).ravel()
    order = numpy.argsort(values, kind="stable")
    values = values[order]
    # each text is compared with a few before it in its bucket only: a large bucket must not cost its square
    for step in range(1, NEIGHBOURS + 1):
        early, late = order[:-step], order[step:]
        candidates = (values[:-step] == values[step:]) & (leader[early] != leader[late])
        yield early[candidates], late[candidates]


class _Groups:
    """Union-find over numbers, where the smallest of a group leads it."""

    def __init__(self, count: int) -> None:
        import numpy

        self.leader = numpy.arange(count)

    def _root(self, number: int) -> int:
        while self.leader[number] != number:
            self.leader[number] = self.leader[self.leader[number]]  # halves the way for the next search
            number = self.leader[number]
        return number

    def join(self, first: int, second: int) -> None:
        smaller, larger = sorted((self._root(first), self._root(second)))
        self.leader[larger] = smaller

    def lists(self) -> list[list[int]]:
        """The groups of more than one, each sorted."""
        import numpy

        groups: dict[int, list[int]] = {}
        for number in numpy.flatnonzero(self.leader != numpy.arange(len(self.leader))):
            groups.setdefault(int(self._root(number)), []).append(int(number))
        return [sorted({first, *rest}) for first, rest in sorted(groups.items())]
