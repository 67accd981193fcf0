"""A file's questions, as chat requests ask them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.artifacts import filenames, manifest
from lockstep.data import layouts, marks
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


def read(file: Path, style: str, system: str | None = None) -> Iterator[Question]:
    """Each line's question, in any layout of training data, with or without the answer at its end.

    Args:
        style: the template that folds instruction and input, see `style_of`.
        system: a system message for conversations that have none.

    Raises:
        UserError: the file cannot be read, or a line of it has no fields of a question; names the line.
    """
    data = Data.model_validate({"template": style})
    before = [{"role": "system", "content": system}] if system else []
    for number, value in json_text.json_lines(file):
        whole, answered = _with_answer(value)
        row = layouts.parse(Record(str(file), number, whole), data)
        if isinstance(row, Reject):
            reason = f"{row.reason.replace('_', ' ')} {row.detail}".rstrip()
            if row.reason.startswith(("missing_", "not_an_object")):  # another kind of file
                raise UserError(f"{file}:{number} is no question: {reason}")
            yield Question([], fault=f"no question: {reason}")
            continue
        *messages, answer = row.messages
        messages = messages if row.system else [*before, *messages]
        yield Question(messages, answer["content"] if answered else None, list(row.tools) if row.tools else None)


def _with_answer(value: Any) -> tuple[Any, bool]:
    """A row with an answer at its end, as the layouts of training data need it, and whether the answer is its own."""
    if not isinstance(value, Mapping):
        return value, False
    # what is not to be trained may be asked all the same
    row = JsonObject([(name, field) for name, field in value.items() if name.casefold() not in marks.ROW_MARKS])
    for name, role in (("messages", "role"), ("conversations", "from")):
        if isinstance(turns := row.get(name), list) and turns:
            last = turns[-1] if isinstance(turns[-1], Mapping) else {}
            if layouts.ROLES.get(str(last.get("role", last.get("from")))) == "assistant":
                return row, True
            row[name] = [*turns, {role: "assistant", "content" if role == "role" else "value": UNKNOWN}]
            return row, False
    answer = "completion" if "prompt" in row and "instruction" not in row else "output"
    given = row.get(answer)
    if given.strip() if isinstance(given, str) else given:
        return row, True
    turns = isinstance(row.get("prompt"), list)  # TRL's form
    row[answer] = [{"role": "assistant", "content": UNKNOWN}] if turns else UNKNOWN
    return row, False


def style_of(settings: Settings) -> str:
    """The template that folds instruction and input: the run's, where its data is here."""
    data = settings.run_dir / filenames.DATA
    if not (data / filenames.MANIFEST).exists():
        return settings.data.template
    return str(manifest.read(data).config["data"]["template"])
