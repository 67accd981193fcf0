"""Rows of a user's file, one by one: each becomes a row with its text untouched, or a reject.

JSON is parsed here and not by a data set loader, because loaders change dates, numbers and
missing fields without a word.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.errors import UserError


@dataclass(frozen=True)
class Row:
    """One instruction with its answer, and where it stands (line, or element of an array)."""

    file: str
    line: int
    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Reject:
    """A line that became no row, with the reason's code and the line as far as it is text."""

    file: str
    line: int
    reason: str
    text: str


class _Rejected(Exception):
    """The reason's code."""


def read(path: Path) -> Iterator[Row | Reject]:
    """Every line of a JSONL file, or every element of a JSON array, in order.

    Args:
        path: UTF-8, with or without a byte order mark; an array is recognised by its first '['.

    Raises:
        UserError: no such file, not readable, or an array that is not JSON as a whole.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no file {paths.label(path)}: see data/README.md for its format") from error
    except OSError as error:
        raise UserError(f"cannot read {paths.label(path)}: {error.strerror}") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    name = paths.label(path)
    if data.lstrip()[:1] == b"[":
        yield from _array(name, data)
        return
    lines = data.split(b"\n")
    if not lines[-1]:  # the line break that ends the file starts no line
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield _line(name, number, line)


def _array(name: str, data: bytes) -> Iterator[Row | Reject]:
    try:
        elements = json.loads(data.decode("utf-8"), object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} starts like a JSON array but is none: {error}") from error
    for number, element in enumerate(elements, 1):
        try:
            yield _row(name, number, element)
        except _Rejected as reason:
            text = json.dumps(element, ensure_ascii=False)
            yield Reject(name, number, str(reason), _printable(text))


def _line(name: str, number: int, line: bytes) -> Row | Reject:
    try:
        if not line.strip():
            raise _Rejected("blank")
        try:
            return _row(name, number, json.loads(line.decode("utf-8"), object_pairs_hook=_Object))
        except UnicodeDecodeError as error:
            raise _Rejected("bad_utf8") from error
        except (ValueError, RecursionError) as error:
            raise _Rejected("bad_json") from error
    except _Rejected as reason:
        return Reject(name, number, str(reason), line.decode("utf-8", errors="backslashreplace"))


class _Object(dict[str, Any]):
    """A JSON object that knows whether a key stood in it twice; Python's keeps the last without a word."""

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        super().__init__(items)
        self.twice = len(self) != len(items)


def _row(name: str, number: int, value: Any) -> Row:
    if not isinstance(value, _Object):
        raise _Rejected("not_an_object")
    if value.twice:
        raise _Rejected("duplicate_key")
    for field in ("history", "system"):
        if value.get(field):
            raise _Rejected(f"{field}_not_supported")  # leaving it out would change the row
    fields = []
    for field in ("instruction", "input", "output"):
        if field not in value and field != "input":
            raise _Rejected(f"missing_{field}")
        text = value.get(field)
        text = "" if field == "input" and text is None else text
        if not isinstance(text, str):
            raise _Rejected("wrong_type")
        if "\0" in text:
            raise _Rejected("nul_character")
        if _printable(text) != text:
            raise _Rejected("lone_surrogate")
        fields.append(text)
    instruction, context, output = fields
    if not (instruction.strip() or context.strip()):
        raise _Rejected("empty_prompt")
    if not output.strip():
        raise _Rejected("empty_answer")
    return Row(name, number, instruction, context, output)


def _printable(text: str) -> str:
    """The text with lone surrogates, which no file can hold, spelled out."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of a JSONL file whose lines must all be JSON; blank lines are skipped.

    Raises:
        UserError: not readable, or a line is not JSON; names the line.
    """
    try:
        # split at "\n" alone: splitlines() would also split at U+2028 inside a text
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number} is not JSON: {error}") from error
