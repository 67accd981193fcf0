"""Strict JSON: duplicate keys are noticed, and integers of any length are read.

Python's own reader keeps the last of two equal keys without a word. Other programs keep the first, so what one program
checked need not be what another one uses.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep.errors import UserError

LONGEST_INT = 4300  # digits that Python's int() takes from a text


class JsonObject(dict[str, Any]):
    """A JSON object that remembers whether one of its keys occurred twice.

    Attributes:
        duplicate_key: the first such key, or None.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.duplicate_key: str | None = None
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.duplicate_key = next(key for key, count in counts.items() if count > 1)


def loads(text: str) -> Any:
    """JSON with JsonObjects for objects; it is for the caller to refuse their duplicate keys.

    Raises:
        ValueError: not JSON.
        RecursionError: nested too deeply.
    """
    return json.loads(text, object_pairs_hook=JsonObject, parse_int=parse_integer)


def loads_without_duplicates(text: str) -> Any:
    """JSON in which no object, at any depth, has a key twice.

    Raises:
        ValueError: not JSON, or a duplicate key.
        RecursionError: nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_refuse_duplicates)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> JsonObject:
    json_object = JsonObject(pairs)
    if json_object.duplicate_key is not None:
        raise ValueError(f"the key {json_object.duplicate_key!r} stands twice")
    return json_object


def parse_integer(digits: str) -> int | float:
    """An integer of any length: Python's int() refuses very long ones, and with them the whole record."""
    return int(digits) if len(digits) <= LONGEST_INT else float(digits)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) for each line of a JSONL file; blank lines are skipped.

    Raises:
        UserError: the file cannot be read, or a line is not JSON; names the line.
    """
    try:
        # split at "\n" only: splitlines() would also split at a U+2028 inside a string
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number} is not JSON: {error}") from error
