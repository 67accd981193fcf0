"""Which of the ten faults rows have: templates and tokens inside them, answers that were cut, splits that overlap."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.records import Record, Reject
from lockstep.doctor import row_look, template_faults
from lockstep.doctor.end_faults import END_TOKEN
from lockstep.doctor.findings import SEED_FAULT, Finding
from lockstep.settings.schema import Data

SHOWN = 5  # lines that are named
SHORTEST_CUT = 100  # characters of an answer; shorter ones have the same length by chance
END_OF_SENTENCE = tuple(".!?…。！？\"'”’)）]】}>`~:：;；*|")
IDS, LABELS, MASK = "input_ids", "labels", "attention_mask"
WHOLE = ("text", "content", "prompt_response")  # fields that hold a whole rendered conversation


def check(files: list[Path]) -> Iterator[Finding]:
    """The faults of files of rows, and of the splits that they are. Raises UserError where one cannot be read."""
    texts: dict[str, tuple[str, str]] = {}  # question and answer → where it stands first
    for path in files:
        records = list(row_look.records(path))
        values = [record for record in records if isinstance(record, Record)]
        if any(isinstance(record.value, Mapping) and IDS in record.value for record in values):
            yield from _encoded(path, values)
            continue
        rendered = [record for record in values if _rendered(record)]
        yield from _rendered_rows(path, rendered)
        rows = list(row_look.rows(records, Data()))
        if not rendered:
            yield from _unreadable(path, rows)
        usable = [row for row in rows if isinstance(row, ConversationRow)]
        yield from _tokens(path, usable)
        yield from _cut(path, usable)
        yield from _overlap(path, usable, texts)


def _finding(number: int, path: Path, what: str, cure: str, lines: list[int]) -> Finding:
    shown = tuple(map(str, lines[:SHOWN])) + (("…",) if len(lines) > SHOWN else ())
    return Finding(f"{SEED_FAULT}{number}", what, cure, file=paths.label(path), lines=shown)


def _rendered(record: Record) -> str:
    """The text of a row that is one rendered conversation; empty for any other row."""
    value = record.value
    if not isinstance(value, Mapping):
        return ""
    texts = [value[name] for name in WHOLE if isinstance(value.get(name), str)]
    return texts[0] if texts and _marks(texts[0]) else ""


def _marks(text: str) -> str:
    """What shows that a text was rendered: a control token, a damaged one, or words such as `### Instruction`."""
    tokens = template_faults.control_tokens_in(text)
    words = template_faults.OWN_WORDS.search(text)
    return tokens[0] if tokens else template_faults.damaged_token(text) or (words[0] if words else "")


def _rendered_rows(path: Path, records: list[Record]) -> Iterator[Finding]:
    if not records:
        return
    endless = [r.line for r in records if not END_TOKEN.search(_rendered(r))]
    if endless:
        what = (
            f"{len(endless)} rendered rows end without a token that ends a turn: a model that learns them never stops"
        )
        yield _finding(1, path, what, "keep question and answer in fields of their own: a template ends them", endless)
    what = (
        f"{len(records)} rows are rendered already ({_marks(_rendered(records[0]))!r}): requests are rendered by "
        f"another template"
    )
    yield _finding(2, path, what, "keep question and answer in fields of their own", [r.line for r in records])
    damaged = [record for record in records if template_faults.damaged_token(_rendered(record))]
    if damaged:
        yield _damaged(path, [(record.line, _rendered(record)) for record in damaged])


def _damaged(path: Path, places: list[tuple[int, str]]) -> Finding:
    word = template_faults.damaged_token(places[0][1])
    what = f"{word} is no control token but almost one: it becomes plain text, and turns run into each other"
    return _finding(3, path, what, "leave control tokens to the chat template", [line for line, _ in places])


def _unreadable(path: Path, rows: list[ConversationRow | Reject]) -> Iterator[Finding]:
    """What the data stage would say of these rows; it is none of the ten faults, and stops a run all the same."""
    rejects = [row for row in rows if isinstance(row, Reject)]
    if not rejects or len(rejects) <= len(rows) * Data().max_reject_share:
        return
    reason, count = Counter(row.reason for row in rejects).most_common(1)[0]
    first = next(row for row in rejects if row.reason == reason)
    what = f"{count} of {len(rows)} rows cannot be used: {reason}{f' ({first.detail})' if first.detail else ''}"
    cure = "data/README.md shows what rows look like"
    lines = tuple(str(row.line) for row in rejects if row.reason == reason)[:SHOWN]
    yield Finding("data_rows", what, cure, file=paths.label(path), lines=lines)


def _tokens(path: Path, rows: list[ConversationRow]) -> Iterator[Finding]:
    """Control tokens and templates inside questions and answers."""
    texts = [(row.record.line, message["role"], message["content"]) for row in rows for message in row.messages]
    damaged = [(line, text) for line, _, text in texts if template_faults.damaged_token(text)]
    if damaged:
        yield _damaged(path, damaged)
    foreign = [(line, tokens[0]) for line, _, text in texts if (tokens := template_faults.control_tokens_in(text))]
    if foreign:
        what = (
            f"{foreign[0][1]} is written into {len(foreign)} texts by hand: it acts as a control token, or as words "
            f"of another model"
        )
        lines = list(dict.fromkeys(line for line, _ in foreign))
        yield _finding(3, path, what, "leave control tokens to the chat template", lines)
    own = [
        (line, match[0].strip())
        for line, role, text in texts
        if role == "user" and (match := template_faults.OWN_WORDS.search(text)) and match[0].startswith("#")
    ]
    if len(own) > len(rows) / 2:
        what = (
            f"{len(own)} questions hold a template of their own ({own[0][1]!r}), and the chat template comes around it"
        )
        yield _finding(2, path, what, "leave only the question in its field", [line for line, _ in own])


def _cut(path: Path, rows: list[ConversationRow]) -> Iterator[Finding]:
    """Answers that all end at the same length, in the middle of a sentence."""
    answers = [(row.record.line, row.messages[place]["content"]) for row in rows for place in row.answers]
    longest = max((len(text) for _, text in answers), default=0)
    lines = [line for line, text in answers if len(text) == longest and not text.rstrip().endswith(END_OF_SENTENCE)]
    if longest >= SHORTEST_CUT and len(lines) >= max(3, len(answers) // 100):
        what = (
            f"{len(lines)} answers have exactly {longest} characters, the most of all, and end within a sentence: "
            f"they were cut"
        )
        yield _finding(6, path, what, "make them again with a larger limit, or leave them out", lines)


def _overlap(path: Path, rows: list[ConversationRow], texts: dict[str, tuple[str, str]]) -> Iterator[Finding]:
    lines, other = [], ""
    for row in rows:
        key = "\0".join(message["content"].strip() for message in row.messages if message["role"] != "system")
        file, place = texts.setdefault(key, (str(path), f"{paths.label(path)}:{row.record.line}"))
        if file != str(path):
            lines.append(row.record.line)
            other = other or place
    if lines:
        what = (
            f"{len(lines)} rows stand in another file, too ({other}): held-out rows that were trained on measure "
            f"nothing"
        )
        yield _finding(10, path, what, "keep a row in one split; `make data` does so by data.drop in_two_splits", lines)


def _encoded(path: Path, records: list[Record]) -> Iterator[Finding]:
    """The faults of rows that are token ids already."""
    rows = [(record.line, record.value) for record in records if isinstance(record.value, Mapping)]
    whole = [(line, row) for line, row in rows if _is_list(row.get(IDS)) and _is_list(row.get(LABELS))]
    uneven = [line for line, row in whole if len(row[IDS]) != len(row[LABELS])]
    if uneven:
        what = f"{len(uneven)} rows have labels of another length than their ids: a batch of them ends with an error"
        yield _finding(9, path, what, "fill both up to the same length, labels with -100", uneven)
    hidden = [line for line, row in whole if _is_hidden(row)]
    if hidden:
        what = (
            f"attention_mask hides supervised tokens of {len(hidden)} rows, as where masks are made from pad_token: "
            f"the end token is not seen"
        )
        yield _finding(4, path, what, "make masks from the lengths of the rows", hidden)
    lasts = [(line, [label for label in row[LABELS] if label != -100][-1:]) for line, row in whole]
    common, count = Counter(tuple(last) for _, last in lasts).most_common(1)[0] if lasts else ((), 0)
    if len(lasts) >= 4 and count <= len(lasts) / 2:
        what = (
            "supervised tokens of these rows end with no common token: no end token is trained, and the model never "
            "stops"
        )
        yield _finding(1, path, what, "append the template's end-of-turn token to every answer", [lasts[0][0]])
        return
    longest = max((len(row[IDS]) for _, row in whole), default=0)
    cut = [
        line
        for (line, row), (_, last) in zip(whole, lasts, strict=True)
        if len(row[IDS]) == longest and tuple(last) != common
    ]
    if len(cut) >= 2:
        what = (
            f"{len(cut)} rows of {longest} tokens, the most of all, lack the end token that other rows have: answers "
            f"were cut"
        )
        yield _finding(6, path, what, "drop rows that are too long and count them, or raise the length", cut)


def _is_list(value: Any) -> bool:
    """Whether a value is a list of numbers."""
    return isinstance(value, list | tuple) and all(isinstance(item, int) for item in value)


def _is_hidden(row: Mapping[str, Any]) -> bool:
    mask = row.get(MASK)
    if not _is_list(mask):
        return False
    return any(seen == 0 and label != -100 for seen, label in zip(mask, row[LABELS], strict=False))  # type: ignore[arg-type]
