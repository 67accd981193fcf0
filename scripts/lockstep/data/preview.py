"""Samples as a person sees them: which tokens are prompt, which are trained, where a turn ends."""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import Any

from lockstep.data.cleaning import Change
from lockstep.data.collator import IGNORE
from lockstep.data.encoding import Sample
from lockstep.data.readers import Reject
from lockstep.prompts.template import Template

PAGE = Path(__file__).with_name("preview_page.html")
ROWS = 500  # samples and rejects on the page
BYTES = 4_500_000  # of them all
EACH = 60  # candidates of one kind
SHOWN = 1500  # tokens of one sample; of a longer one the beginning and the end
CHARACTERS = 3000  # of one reject


class Picks:
    """A few rows of every kind: each reason of dropping, each length, cut, changed, split.

    Chosen by a hash of where they stand, so that equal data gives an equal page.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, list[tuple[int, int, dict[str, Any]]]] = {}
        self._count = 0

    def reject(self, reject: Reject) -> None:
        short = replace(reject, text=reject.text[: CHARACTERS + 1])
        self._offer([reject.reason], f"{reject.file}:{reject.line}", "dropped", short)

    def keep(self, sample: Sample, split: str, parts: int, changes: Sequence[Change]) -> None:
        kinds = [f"{split}, up to {2 ** (len(sample.input_ids) - 1).bit_length()} tokens"]
        kinds += ["truncated"] * (sample.cut > 0) + ["one sample a turn"] * (parts > 1)
        kinds += sorted({f"changed: {change.step}" for change in changes})
        kinds += ["tools"] * (sample.row.tools is not None) + ["several turns"] * (len(sample.row.answers) > 1)
        self._offer(kinds, sample.row.name, split, sample)

    def _offer(self, kinds: list[str], name: str, split: str, what: Sample | Reject) -> None:
        rank = -int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        self._count += 1
        for kind in kinds:
            heap = self._kinds.setdefault(kind, [])
            if len(heap) < EACH or rank > heap[0][0]:
                entry = (rank, -self._count, {"kinds": kinds, "split": split, "what": what})
                (heapq.heappush if len(heap) < EACH else heapq.heappushpop)(heap, entry)

    def chosen(self) -> Iterator[dict[str, Any]]:
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
    tokens = chat.tokenizer.added_tokens_decoder.items()
    controls = {one for one, token in tokens if token.content.strip().strip("▁")}
    waiting: list[int] = []
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
    report = f'"ledger":{_json(ledger)},"quality":{_json(quality)}'
    size = len(report.encode())
    for pick in picks.chosen():
        what = pick["what"]
        row = _reject(pick) if isinstance(what, Reject) else _sample(pick, chat)
        text = _json(row)
        if size + len(text.encode()) > BYTES:
            continue
        rows.append(text)
        size += len(text.encode())
        if len(rows) == ROWS:
            break
    return PAGE.read_text(encoding="utf-8").replace("DATA", '{"rows":[' + ",".join(rows) + "]," + report + "}")


def _json(value: Any) -> str:
    """JSON in which no text can end the page's script, nor open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _reject(pick: dict[str, Any]) -> dict[str, Any]:
    reject: Reject = pick["what"]
    text = reject.text[:CHARACTERS] + (" …" if len(reject.text) > CHARACTERS else "")
    name = f"{reject.file}:{reject.line}"
    return {"name": name, "kinds": pick["kinds"], "split": "dropped", "detail": reject.detail[:300], "text": text}


def _sample(pick: dict[str, Any], chat: Template) -> dict[str, Any]:
    sample: Sample = pick["what"]
    ids, labels, size = sample.input_ids, sample.labels, len(sample.input_ids)
    parts = [(ids, labels)] if size <= SHOWN else [(ids[: SHOWN * 2 // 3], labels[: SHOWN * 2 // 3]), (ids[-SHOWN // 3 :], labels[-SHOWN // 3 :])]  # fmt: skip
    spans: list[list[str]] = []
    for number, part in enumerate(parts):
        if number:
            spans.append(["gap", f" … {size - SHOWN} tokens … "])
        for kind, group in groupby(token_spans(*part, chat), key=lambda span: span[0]):
            spans.append([kind, *(text for _, text in group)])
    return {"name": sample.row.name, "kinds": pick["kinds"], "split": pick["split"], "tokens": size, "spans": spans}
