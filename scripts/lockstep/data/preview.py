"""Samples as a person sees them: which tokens are prompt, which are trained, where a turn ends."""

import hashlib
import heapq
import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lockstep.data.cleaning import Change
from lockstep.data.collator import IGNORE
from lockstep.data.encoding import Sample
from lockstep.data.records import Reject
from lockstep.prompts.template import Template
from lockstep.text import language

PAGE = Path(__file__).with_name("preview_page.html")
ROWS = 500  # samples and rejects on the page
PHRASE = re.compile(r'\{\{ _\("([^"]+)"\) \}\}')  # on the page, outside of its script
BYTES = 4_500_000  # of them all
EACH = 60  # candidates of one kind
SHOWN = 1500  # tokens of one sample; of a longer one the beginning and the end
CHARACTERS = 3000  # of one reject


class Pick(NamedTuple):
    """A sample or a reject for the page, the kinds that it is an example of, and its split."""

    kinds: list[str]
    split: str
    shown: Sample | Reject


class Picks:
    """A few rows of every kind: each reason of dropping, each length, cut, changed, split.

    Chosen by a hash of where they stand, so that equal data gives an equal page.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, list[tuple[int, int, Pick]]] = {}  # kind → heap of (rank, order of arrival, pick)
        self._count = 0

    def reject(self, reject: Reject) -> None:
        short = replace(reject, text=reject.text[: CHARACTERS + 1])
        self._offer([reject.reason], f"{reject.file}:{reject.line}", "dropped", short)

    def keep(self, sample: Sample, split: str, parts: int, changes: Sequence[Change]) -> None:
        kinds = [f"{split}, up to {2 ** (len(sample.input_ids) - 1).bit_length()} tokens"]
        if sample.cut > 0:
            kinds.append("truncated")
        if parts > 1:
            kinds.append("one sample a turn")
        kinds += sorted({f"changed: {change.step}" for change in changes})
        if sample.row.tools is not None:
            kinds.append("tools")
        if len(sample.row.answers) > 1:
            kinds.append("several turns")
        self._offer(kinds, sample.row.name, split, sample)

    def _offer(self, kinds: list[str], name: str, split: str, shown: Sample | Reject) -> None:
        """Keep the EACH candidates of every kind whose names have the smallest hashes."""
        rank = -int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        self._count += 1
        pick = Pick(kinds, split, shown)
        for kind in kinds:
            heap = self._kinds.setdefault(kind, [])  # the worst candidate first
            if len(heap) < EACH:
                heapq.heappush(heap, (rank, -self._count, pick))
            elif rank > heap[0][0]:
                heapq.heappushpop(heap, (rank, -self._count, pick))

    def chosen(self) -> Iterator[Pick]:
        """One of each kind, then a second of each, and so on; none twice."""
        seen = set()
        ranked = [sorted(heap, key=lambda entry: (-entry[0], -entry[1])) for _, heap in sorted(self._kinds.items())]
        for entry in chain.from_iterable(zip_longest(*ranked)):
            if entry and entry[1] not in seen:
                seen.add(entry[1])
                yield entry[2]


def token_spans(ids: Sequence[int], labels: Sequence[int], chat: Template) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token: prompt, answer, end (a supervised control token), control.

    Tokens that hold only a part of a character, as in Chinese text, are joined until it is whole.
    """
    added = chat.tokenizer.added_tokens_decoder.items()
    controls = {number for number, token in added if token.content.strip().strip("▁")}  # runs of spaces control nothing
    waiting: list[int] = []  # tokens whose text is not whole yet
    pairs = list(zip(ids, labels, strict=True))
    for place, (token, label) in enumerate(pairs):
        kind = "answer" if label != IGNORE else "prompt"
        if token in controls:
            kind = "control" if label == IGNORE else "end" if token == chat.end_of_turn else "answer"
        waiting.append(token)
        text = chat.tokenizer.decode(waiting)
        if str(chat.tokenizer.convert_ids_to_tokens(waiting[0])).startswith("▁") and not text.startswith(" "):
            text = " " + text  # SentencePiece hides the space of a text's first word
        following = pairs[place + 1] if place + 1 < len(pairs) else None
        goes_on = following and following[0] not in controls and (following[1] != IGNORE) == (label != IGNORE)
        if text.endswith("\ufffd") and goes_on and token not in controls:
            continue
        yield kind, text
        waiting = []


def page(picks: Picks, ledger: Any, quality: Any, chat: Template) -> str:
    """One self-contained page: rows as coloured tokens, rejects, the report; under 5 MB."""
    rows: list[str] = []
    shown = quality | {"advice": [language.translated(line) for line in quality["advice"]]} if quality else quality
    report = f'"ledger":{_json(ledger)},"quality":{_json(shown)},"phrases":{_json(language.phrases())}'
    size = len(report.encode())
    for pick in picks.chosen():
        row = _reject(pick, pick.shown) if isinstance(pick.shown, Reject) else _sample(pick, pick.shown, chat)
        text = _json(row)
        if size + len(text.encode()) > BYTES:
            continue
        rows.append(text)
        size += len(text.encode())
        if len(rows) == ROWS:
            break
    return _template().replace("DATA", '{"rows":[' + ",".join(rows) + "]," + report + "}")


def _template() -> str:
    """The page without its data, in the reader's language."""
    text = PAGE.read_text(encoding="utf-8")
    text = PHRASE.sub(lambda match: html.escape(language.phrase(match[1])), text)
    return text.replace("LANGUAGE", language.html_code())


def _json(value: Any) -> str:
    """JSON in which no text can end the page's script, nor open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _reject(pick: Pick, reject: Reject) -> dict[str, Any]:
    text = reject.text[:CHARACTERS] + (" …" if len(reject.text) > CHARACTERS else "")
    name = f"{reject.file}:{reject.line}"
    return {
        "name": name,
        "kinds": pick.kinds,
        "split": "dropped",
        "detail": language.translated(reject.detail[:300]),
        "text": text,
    }


def _sample(pick: Pick, sample: Sample, chat: Template) -> dict[str, Any]:
    ids, labels, size = sample.input_ids, sample.labels, len(sample.input_ids)
    if size <= SHOWN:
        spans = _grouped_spans(ids, labels, chat)
    else:
        head, tail = SHOWN * 2 // 3, -SHOWN // 3
        spans = [
            *_grouped_spans(ids[:head], labels[:head], chat),
            ["gap", f" … {size - SHOWN} tokens … "],
            *_grouped_spans(ids[tail:], labels[tail:], chat),
        ]
    return {"name": sample.row.name, "kinds": pick.kinds, "split": pick.split, "tokens": size, "spans": spans}


def _grouped_spans(ids: Sequence[int], labels: Sequence[int], chat: Template) -> list[list[str]]:
    """Neighbouring tokens of one kind as a list: the kind, then their texts."""
    groups: list[list[str]] = []
    for kind, text in token_spans(ids, labels, chat):
        if groups and groups[-1][0] == kind:
            groups[-1].append(text)
        else:
            groups.append([kind, text])
    return groups
