"""Records of a user's files, before anything is known of their layout, and what became no record."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lockstep.text.unicode import printable

LARGEST = 2**24  # bytes of one record; what is above fits no context window
SHOWN = 2**16  # of a larger record, so much goes into rejects.jsonl
BROKEN = "broken_file"  # the reason of the record at which a file can be read no further


@dataclass(frozen=True)
class Record:
    """One line, element or table row as parsed, and as it was written."""

    file: str
    line: int  # physical line of JSONL; element of an array or table
    value: Any
    raw: str | None = field(default=None, repr=False)
    file_line: int | None = None  # physical line on which it begins; None where the file has no lines

    @property
    def text(self) -> str:
        """What rejects.jsonl shows of it."""
        return self.raw if self.raw is not None else printable(json.dumps(self.value, ensure_ascii=False, default=str))


@dataclass(frozen=True)
class Reject:
    """A record that became no row: the reason's code, what exactly, and the record as far as it is text.

    Attributes:
        file_line: the physical line on which it begins; None where the file has no lines.
        keys: of the record, where it is an object.
    """

    file: str
    line: int
    reason: str
    detail: str
    text: str
    file_line: int | None = None
    keys: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where a person finds it: file and line, or file, element and line."""
        if self.file_line in (None, self.line):
            return f"{self.file}:{self.line}"
        return f"{self.file}: element {self.line}, line {self.file_line}"


class Parsed(NamedTuple):
    """A record's value, and how it was written where that is text."""

    value: Any
    raw: str | None


class Unreadable(NamedTuple):
    """A record without a value: the reason's code, what exactly, and the record as written."""

    reason: str
    detail: str
    text: str


@dataclass
class Place:
    """The physical line on which the record begins that a parser has just given; None where the file has no lines."""

    line: int | None = None


class BrokenFile(Exception):
    """Nothing after this place can be read."""


# What reading raises where a file is not whole.
DAMAGE = (BrokenFile, EOFError, zlib.error, gzip.BadGzipFile)
Stream = Any  # a buffered binary file; gzip's shares no type with io's
Parser = Iterator[Parsed | Unreadable]


def spelled_out(text: str) -> str:
    """The text with bytes that were no UTF-8, read as lone surrogates, spelled out as in \\xe9."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
