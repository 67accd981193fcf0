"""Files that exist whole or not at all, and are on the disk before anything relies on them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(
    file: Path, mode: str = "w", newline: str | None = None, encoding: str | None = "utf-8"
) -> Iterator[IO[Any]]:
    """A stream for the new content of a file: readers see the old file or the new one, never half of one.

    Two processes must not write the same file at once. What a killed process leaves behind, the next one replaces.

    Raises: OSError.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open(mode, newline=newline, encoding=encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Write JSON, all of it or nothing.

    Raises: OSError.
    """
    with replacing(file) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2, allow_nan=False)
        stream.write("\n")


def fsync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(file: Path) -> Any:
    """The value in a JSON file. Raises: OSError; ValueError or RecursionError where it is not JSON."""
    return json.loads(file.read_text(encoding="utf-8"))
