"""A JSON-lines file that grows while a stage works. A last line that a kill or a full disk cut off is ignored."""

import json
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic
from lockstep.errors import UserError
from lockstep.text.unicode import printable


def append(file: Path, record: dict[str, Any]) -> None:
    """Add a record. Raises: OSError."""
    with file.open("ab") as stream:
        stream.write(_line(record))


def read(file: Path) -> list[dict[str, Any]]:
    """All complete records; none if there is no file.

    Raises:
        UserError: a complete line is not JSON.
    """
    if not file.exists():
        return []
    # split as bytes: texts may contain other line breaks, and the last line may end within a character
    *lines, _ = file.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{paths.label(file)} is damaged ({error}): move it away") from error


def forget_after(file: Path, step: int) -> None:
    """Drop the records of later steps, and an incomplete last line."""
    if file.exists():
        kept = [record for record in read(file) if record["step"] <= step]
        with atomic.replacing(file, "wb", encoding=None) as stream:
            stream.writelines(_line(record) for record in kept)


def _line(record: dict[str, Any]) -> bytes:
    return (printable(json.dumps(record, ensure_ascii=False)) + "\n").encode()
