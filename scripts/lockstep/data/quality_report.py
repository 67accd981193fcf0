"""What a person should know of a data set before training on it: repetition, balance, languages, leaks."""

import hashlib
import heapq
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lockstep.data.conversation_row import ConversationRow
from lockstep.data.ledger import Ledger
from lockstep.data.near_duplicates import Signatures
from lockstep.settings.schema import Data
from lockstep.text.cjk import HAN, HANGUL, KANA

SAMPLE = 5000  # answers searched for repeated phrases, chosen by their hash
UNITS = re.compile(rf"[{HAN}]|[^\W\d_{HAN}]+(?:['’][^\W\d_]+)?|\d+")
BREAKS = re.compile(r"[^\w\s'’]+")  # no phrase reaches over punctuation
SCRIPTS = {
    "zh": re.compile(f"[{HAN}]"),
    "ja": re.compile(f"[{KANA}]"),
    "ko": re.compile(f"[{HANGUL}]"),
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f]"),
    "cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "arabic": re.compile(r"[\u0600-\u06ff]"),
}
TOP_ANSWERS = 50  # different answers that may be labels
LONGEST_LABEL = 60  # characters

Phrase = tuple[str, ...]
Line = Callable[[int], Mapping[str, Any]]  # number of a kept row → its line in its split


class Quality:
    """Collects figures row by row; `report` gives them all.

    Keeps 21 bytes a row, and its signature for the search of near duplicates. Texts that the
    report quotes are read back from the splits.
    """

    def __init__(self, splits: Sequence[str], data: Data) -> None:
        self.splits, self.data = list(splits), data
        self.signatures = Signatures() if data.near_duplicate_similarity else None
        # of each kept row: its split, its place in it, and hashes of its answer and of its prompt
        self.split, self.place = array("B"), array("I")
        self.answers, self.prompts = array("Q"), array("Q")
        self.languages: Counter[str] = Counter()
        self.sample: list[tuple[int, str]] = []  # a heap of the SAMPLE answers with the smallest hashes
        self.thoughts = 0  # rows with a block of thought

    def add(self, row: ConversationRow, split: str, place: int) -> None:
        """Take a kept row into account, whose sample is number `place` of its split."""
        answer = "\n".join(row.messages[place]["content"] for place in row.answers)
        if self.signatures:
            self.signatures.add(row.dialogue)
        self.thoughts += any(
            "reasoning_content" in message or "</think" in message["content"] for message in row.messages
        )
        self.split.append(self.splits.index(split))
        self.place.append(place)
        self.answers.append(_number(answer))
        self.prompts.append(_number("\n".join(m["content"] for m in row.messages if m["role"] == "user")))
        self.languages[language(answer)] += 1
        push = heapq.heappush if len(self.sample) < SAMPLE else heapq.heappushpop
        push(self.sample, (-_number(row.name + answer), answer[:1000]))

    def report(
        self,
        ledger: Ledger,
        read: Callable[[str, int], Mapping[str, Any]],
        progress: Callable[[Any], Any] = iter,
    ) -> dict[str, Any]:
        """All figures, and advice where something looks harmful.

        Args:
            read: split and place → that line of the split.
            progress: wraps what is searched, to show a bar.
        """

        def line(number: int) -> Mapping[str, Any]:
            return read(self.splits[self.split[number]], self.place[number])

        figures: dict[str, Any] = {
            "rows": len(self.split),
            "lengths": histogram(ledger.lengths),
            "languages": dict(self.languages.most_common()),
            **self._repeated_answers(line),
            "phrases": phrases([answer for _, answer in self.sample], progress),
            "near_duplicates": self._near_duplicates(line, progress),
            **self._repeated_prompts(),
        }
        return figures | {"advice": list(advice(figures, ledger, self.data))}

    def _repeated_answers(self, line: Line) -> dict[str, Any]:
        """The most repeated answers; counts by answer, where answers look like labels of a classification."""
        import numpy

        _, first, counts = numpy.unique(numpy.asarray(self.answers), return_index=True, return_counts=True)
        top: list[dict[str, Any]] = []
        for place in numpy.lexsort((first, -counts))[:TOP_ANSWERS]:  # the most frequent first, then in order
            if counts[place] > 1:
                answer = str(line(int(first[place]))["messages"][-1]["content"])[:200]
                top.append({"count": int(counts[place]), "answer": answer})
        # labels: few different answers, short ones, each of them given several times
        labels: dict[str, int] | None = None
        if 2 <= len(counts) <= TOP_ANSWERS and len(top) == len(counts) and len(self.split) >= 5 * len(counts):
            labels = {entry["answer"]: entry["count"] for entry in top}
            if any(len(label) > LONGEST_LABEL for label in labels):
                labels = None
        return {"repeated_answers": top[:20], "labels": labels}

    def _repeated_prompts(self) -> dict[str, int]:
        import numpy

        prompts, train = numpy.asarray(self.prompts), numpy.asarray(self.split) == self.splits.index("train")
        both = numpy.intersect1d(prompts[train], prompts[~train])
        return {
            "prompts_with_several_rows": len(prompts) - len(numpy.unique(prompts)),
            "held_out_prompts_in_train": int(numpy.isin(prompts[~train], both).sum()),
        }

    def _near_duplicates(self, line: Line, progress: Callable[[Any], Any]) -> dict[str, Any] | None:
        if not self.signatures:
            return None
        clusters = self.signatures.clusters(self.data.near_duplicate_similarity or 1, progress)
        clusters.sort(key=len, reverse=True)
        train = self.splits.index("train")
        leaked = 0  # held-out rows that are like a training row
        for numbers in clusters:
            held_out = sum(self.split[number] != train for number in numbers)
            if held_out < len(numbers):
                leaked += held_out
        return {
            "similarity": self.data.near_duplicate_similarity,
            "clusters": len(clusters),
            "rows": sum(map(len, clusters)),
            "across_train_and_held_out": leaked,
            "largest": [_cluster(numbers, line) for numbers in clusters[:10]],
        }


def _cluster(numbers: list[int], line: Line) -> dict[str, Any]:
    """A group of near duplicates, by an example and where its first rows stand."""
    lines = [line(number) for number in numbers[:5]]
    question, answer = (lines[0]["messages"][place]["content"][:60] for place in (-2, -1))
    return {
        "rows": len(numbers),
        "where": [line["row"] for line in lines],
        "example": f"{question} → {answer}",
    }


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest())


def language(text: str) -> str:
    """The script that most letters of a text belong to; `mixed` where none has two thirds of them."""
    text = text[:2000]
    counts = {name: len(pattern.findall(text)) for name, pattern in SCRIPTS.items()}
    if counts["ja"]:  # kana make the Chinese characters beside them Japanese
        counts["ja"] += counts.pop("zh")
    counts["latin"] //= 4  # a word has about four letters where Chinese has one character
    total = sum(counts.values())
    if not total:
        return "latin" if any(char.isalpha() for char in text) else "other"
    name, most = max(counts.items(), key=lambda pair: pair[1])
    return name if most * 3 >= total * 2 else "mixed"


def histogram(lengths: Counter[int]) -> list[dict[str, int]]:
    """Samples by length in tokens, in bins whose width doubles."""
    bins: Counter[int] = Counter()
    for length, count in lengths.items():
        bins[max(3, (length - 1).bit_length())] += count
    return [
        {"from": 2 ** (power - 1) + 1 if power > 3 else 1, "to": 2**power, "samples": bins[power]}
        for power in range(min(bins, default=0), max(bins, default=-1) + 1)
    ]


def phrases(answers: Sequence[str], progress: Callable[[Any], Any] = iter, longest: int = 30) -> list[dict[str, Any]]:
    """Phrases of three or more words (Chinese: characters) that many answers hold, the most frequent first.

    A phrase inside a longer one that is nearly as frequent is left out. Grows phrases from their
    frequent beginnings (Agrawal and Srikant's a-priori rule), so that rare ones are never counted.
    """
    different = sorted(set(answers))
    texts: list[list[str]] = []  # the units of each part of an answer; an empty list ends an answer
    for answer in different:
        texts += filter(None, map(UNITS.findall, BREAKS.split(answer.casefold())))
        texts.append([])
    enough = max(5, len(different) // 50)
    frequent: dict[Phrase, int] = {}
    # of each part of an answer, the places where a frequent phrase of the size before begins
    places: list[Iterable[int]] = [range(len(units) - 2) for units in texts]
    for size in progress(range(3, longest + 1)):
        counts = _count_answers(texts, places, size)
        known = {phrase: count for phrase, count in counts.items() if count >= enough}
        if not known:
            break
        frequent |= known
        places = [_longer_places(units, starts, size, known) for units, starts in zip(texts, places, strict=True)]
    top = sorted(frequent.keys() - _covered(frequent), key=lambda phrase: (-frequent[phrase], phrase))[:20]
    shares = {phrase: round(frequent[phrase] / len(different), 4) for phrase in top}
    return [{"phrase": spell(phrase), "answers": frequent[phrase], "share": shares[phrase]} for phrase in top]


def _count_answers(texts: list[list[str]], places: list[Iterable[int]], size: int) -> Counter[Phrase]:
    """How many answers hold each phrase of `size` units that begins at one of the places."""
    counts: Counter[Phrase] = Counter()
    in_answer: set[Phrase] = set()
    for units, starts in zip(texts, places, strict=True):
        in_answer |= {tuple(units[place : place + size]) for place in starts}
        if not units:  # an answer ends
            counts.update(in_answer)
            in_answer = set()
    return counts


def _longer_places(units: list[str], starts: Iterable[int], size: int, known: Mapping[Phrase, int]) -> list[int]:
    """Places where a frequent phrase longer by one may begin: both phrases of `size` inside it are frequent."""
    good = {place for place in starts if tuple(units[place : place + size]) in known}
    return sorted(place for place in good if place + 1 in good)


def _covered(frequent: Mapping[Phrase, int]) -> set[Phrase]:
    """Phrases inside another one, longer by one unit, that is nearly as frequent."""
    covered = set()
    for phrase, count in frequent.items():
        for part in (phrase[1:], phrase[:-1]):
            if frequent.get(part, 0) * 0.8 <= count:
                covered.add(part)
    return covered


def spell(units: Iterable[str]) -> str:
    """Words with spaces between them, Chinese characters without."""
    return re.sub(rf"(?<=[{HAN}]) (?=[{HAN}])", "", " ".join(units))


def advice(figures: dict[str, Any], ledger: Ledger, data: Data) -> Iterable[str]:
    """One line for each thing that looks harmful, with what to do."""
    rows = max(1, figures["rows"])
    for phrase in figures["phrases"][:3]:
        if phrase["share"] >= 0.1:
            yield (
                f"{phrase['share']:.0%} of the different answers hold “{phrase['phrase']}”: the model will say it "
                f"as often; rewrite or remove some of these rows"
            )
    top = figures["repeated_answers"][:1]
    if top and not figures["labels"] and top[0]["count"] >= max(5, rows * 0.02):
        yield f"{top[0]['count']} rows have the same answer “{top[0]['answer'][:40]}”: keep a few of them"
    if labels := figures["labels"]:
        most, least = max(labels.values()), min(labels.values())
        if most > 10 * least:
            yield f"labels are out of balance ({most} rows against {least}): the rare ones will hardly be learned"
    if near := figures["near_duplicates"]:
        if near["rows"] > rows * 0.2:
            yield (
                f"{near['rows']} of {rows} rows are near duplicates in {near['clusters']} groups: where that is no "
                f"template on purpose, add near_duplicate to --data.drop"
            )
        if leaks := near["across_train_and_held_out"]:
            yield f"{leaks} held-out rows are near duplicates of training rows: scores on them are too good"
    long = sum(account.dropped["too_long"] for account in ledger.files.values())
    if long > rows * 0.02:
        yield f"{long} rows are longer than --data.max_length {data.max_length} and are not trained on: raise it"
    if rows < 200:
        yield f"{rows} rows are few: expect the tone to be learned sooner than facts or formats"
