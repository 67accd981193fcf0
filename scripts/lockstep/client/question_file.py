"""A file's questions, as chat requests ask them."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lockstep.artifacts import filenames, manifest
from lockstep.data import hints, keys, layouts, marks, readers, user_files
from lockstep.data.records import Record, Reject
from lockstep.errors import UserError
from lockstep.prompts.template import Message
from lockstep.settings.schema import Data
from lockstep.settings.tree import Settings
from lockstep.text import json_text
from lockstep.text.json_text import JsonObject

UNKNOWN = "?"  # in place of a row's answer


@dataclass(frozen=True)
class Question:
    """A row of a file of questions.

    Attributes:
        messages, tools: as a chat request holds them.
        reference: the row's own answer, if it has one.
        fault: why the row cannot be asked.
    """

    messages: list[Message]
    reference: str | None = None
    tools: list[Any] | None = None
    fault: str = ""


def read(file: Path, data: Data, system: str | None = None) -> Iterator[Question]:
    """Each row's question, from any file of training data, with or without the answer at its end.

    Args:
        data: tells names of columns, and the template that folds instruction and input, see `reading_of`.
        system: a system message for conversations that have none.

    Raises:
        UserError: the file cannot be read, or a row of it has no fields of a question; names the line.
    """
    before = [{"role": "system", "content": system}] if system else []
    if not file.is_file():
        raise UserError(f"cannot read {file}: there is no such file")
    user_files.check_suffix(file)
    records = readers.records(file)
    first = list(islice(records, keys.FIRST))
    names = _names(first, data)
    for record in chain(first, records):
        if isinstance(record, Reject):
            if record.reason != "blank":
                raise UserError(f"{record.place} cannot be read: {_reason(record)}{hints.hint(record)}")
            continue
        value = keys.renamed(record.value, data.columns) if isinstance(record.value, Mapping) else record.value
        whole, answered = _with_answer(value, names)
        row = layouts.parse(replace(record, value=whole), data.model_copy(update={"columns": ()}), names)
        if isinstance(row, Reject):
            if row.reason.startswith(("missing_", "not_an_object")):  # another kind of file
                raise UserError(f"{row.place} is no question: {_reason(row)}{_keys_of(record)}")
            yield Question([], fault=f"no question: {_reason(row)}")
            continue
        *messages, answer = row.messages
        messages = messages if row.system else [*before, *messages]
        yield Question(messages, answer["content"] if answered else None, list(row.tools) if row.tools else None)


def _reason(reject: Reject) -> str:
    return f"{reject.reason.replace('_', ' ')} {reject.detail}".rstrip()


def _keys_of(record: Record) -> str:
    """What a message adds about a row in which no question is recognized."""
    if not isinstance(record.value, Mapping):
        return ""
    return f": its keys are {hints.names(tuple(record.value))}; name the question's instruction, or give messages"


def _names(records: Iterable[Record | Reject], data: Data) -> dict[str, str]:
    """Other names of a file's fields, as `keys.other_names` tells them from its question and its answer.

    Where no record has an answer, each is looked at as if it had one.
    """
    rows = [record for record in records if isinstance(record, Record) and isinstance(record.value, JsonObject)]
    if not any(name.casefold() in keys.ANSWERS for record in rows for name in record.value):
        answered = [JsonObject([*record.value.items(), (_answer_of(record.value), UNKNOWN)]) for record in rows]
        rows = [replace(record, value=value) for record, value in zip(rows, answered, strict=True)]
    return keys.other_names(rows, data)


def _answer_of(row: Mapping[str, Any]) -> str:
    """The field that holds the answer of a row without turns."""
    names = {name.casefold() for name in row}
    return "completion" if "prompt" in names and "instruction" not in names else "output"


def _with_answer(value: Any, names: Mapping[str, str]) -> tuple[Any, bool]:
    """A row with an answer at its end, as the layouts of training data need it, and whether the answer is its own.

    Args:
        names: fields that the file has under other names: theirs → ours.
    """
    if not isinstance(value, Mapping):
        return value, False
    # what is not to be trained may be asked all the same
    row = JsonObject([(name, field) for name, field in value.items() if name.casefold() not in marks.ROW_MARKS])
    theirs = {names.get(name, name): name for name in row}
    for ours, role in (("messages", "role"), ("conversations", "from")):
        name = theirs.get(ours, ours)
        if turns := _turns(row.get(name)):
            last = turns[-1] if isinstance(turns[-1], Mapping) else {}
            if layouts.ROLES.get(str(last.get("role", last.get("from")))) == "assistant":
                return row, True
            row[name] = [*turns, {role: "assistant", "content" if role == "role" else "value": UNKNOWN}]
            return row, False
    answer = _answer_of(theirs)
    name = theirs.get(answer, answer)
    given = row.get(name)
    if given.strip() if isinstance(given, str) else given:
        return row, True
    in_turns = isinstance(row.get("prompt"), list)  # TRL's form
    row[name] = [{"role": "assistant", "content": UNKNOWN}] if in_turns else UNKNOWN
    return row, False


def _turns(value: Any) -> list[Any]:
    """A conversation's turns: a list, or in tables its JSON text; none where it is neither."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json_text.loads(value)
    return value if isinstance(value, list) else []


def reading_of(settings: Settings) -> Data:
    """How rows are read: by the names of columns and the template of the run's data, where it is here."""
    data = settings.run_dir / filenames.DATA
    if not (data / filenames.MANIFEST).exists():
        return Data.model_validate({"template": settings.data.template, "columns": settings.data.columns})
    settled = manifest.read(data).config["data"]
    return Data.model_validate({"template": settled["template"], "columns": settled.get("columns", ())})
