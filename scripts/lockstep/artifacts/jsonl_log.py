"""A JSON-lines file that grows while a stage works: what is torn off at its end, by a kill or a full disk, never counts."""

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
    """All whole records; none where there is no file.

    Raises:
        UserError: a line in it is no record.
    """
    if not file.exists():
        return []
    # as bytes, and split there alone: a text may hold other line breaks, and may end within a character
    *lines, _ = file.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{paths.label(file)} is damaged ({error}): move it away") from error


def forget_after(file: Path, step: int) -> None:
    """Drop the records of later steps, and what is torn off."""
    if file.exists():
        kept = [record for record in read(file) if record["step"] <= step]
        with atomic.replacing(file, "wb", encoding=None) as stream:
            stream.writelines(_line(record) for record in kept)


def _line(record: dict[str, Any]) -> bytes:
    return (printable(json.dumps(record, ensure_ascii=False)) + "\n").encode()
