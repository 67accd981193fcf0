"""JSON as it stands in a text: duplicate keys are seen, and numbers of any length are read."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep.errors import UserError


class JsonObject(dict[str, Any]):
    """A JSON object that knows whether a key stood in it twice; Python's keeps the last without a word."""

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        super().__init__(items)
        self.twice = None
        if len(self) < len(items):
            self.twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)


def loads(text: str) -> Any:
    """JSON whose objects are JsonObjects. Raises ValueError; RecursionError where it is nested without end."""
    return json.loads(text, object_pairs_hook=JsonObject, parse_int=parse_integer)


def parse_integer(digits: str) -> int | float:
    """A number of any length: Python's int refuses what has above 4300 digits, and with it the whole record."""
    return int(digits) if len(digits) <= 4300 else float(digits)


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
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number} is not JSON: {error}") from error
