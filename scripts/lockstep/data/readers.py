"""Files of a user, record by record: JSONL, JSON arrays, CSV, Parquet, Arrow; all but Arrow also gzipped.

Records are read here and not by a data set loader, because loaders change dates, numbers and
missing fields without a word. Memory does not grow with the file.
"""

import codecs
import gzip
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lockstep import paths
from lockstep.data import json_readers, table_readers
from lockstep.data.records import BROKEN, DAMAGE, Parser, Place, Record, Reject, Stream, Unreadable
from lockstep.errors import UserError

# Names of files that can hold rows; one without any suffix is told by its content.
ROWS = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow)(\.gz)?$", re.IGNORECASE)


class Shape(NamedTuple):
    """How a file is read.

    Attributes:
        note: what a person should know of that, where it is not what the file's name says.
    """

    parser: Callable[[Stream, Place], Parser]
    note: str = ""


def records(path: Path) -> Iterator[Record | Reject]:
    """Every line of a JSONL file, or every element of a JSON array, CSV or Parquet table, in order.

    Args:
        path: told apart by its suffix; JSON by its first object or array, gzip by its first bytes.

    Yields:
        A Record, or a Reject. One with the reason BROKEN is the last: the rest cannot be read.

    Raises:
        UserError: no such file, or not readable.
    """
    name, number, at = paths.label(path), 0, Place()
    try:
        with _opened(path) as stream:
            for number, parsed in enumerate(_shape(path, stream).parser(stream, at), 1):
                if isinstance(parsed, Unreadable):
                    yield Reject(name, number, parsed.reason, parsed.detail, parsed.text, at.line)
                else:
                    yield Record(name, number, parsed.value, parsed.raw, at.line)
    except DAMAGE as error:
        yield Reject(name, number + 1, BROKEN, str(error) or "ends too early", "", at.line)


def note(path: Path) -> str:
    """How a file is read, where its name does not say that; empty elsewhere. Raises UserError as `records` does."""
    try:
        with _opened(path) as stream:
            return _shape(path, stream).note
    except DAMAGE:
        return ""  # `records` gives that to the books


def _opened(path: Path) -> Stream:
    try:
        stream = path.open("rb", buffering=2**20)
    except FileNotFoundError as error:
        raise UserError(f"no file {paths.label(path)}: see data/README.md for its format") from error
    except OSError as error:
        raise UserError(f"cannot read {paths.label(path)}: {error.strerror}") from error
    if stream.read(2) == b"\x1f\x8b":
        stream.close()
        return gzip.GzipFile(path)
    stream.seek(0)
    return stream


def _shape(path: Path, stream: Stream) -> Shape:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in (".csv", ".tsv"):
        usual = "\t" if suffix == ".tsv" else ","
        delimiter = table_readers.delimiter(stream, usual)
        stream.seek(0)
        shown = "fields are separated by " + ("tabs" if delimiter == "\t" else repr(delimiter))
        return Shape(partial(table_readers.rows_of_csv, delimiter), "" if delimiter == usual else shown)
    if suffix == ".parquet":
        return Shape(table_readers.rows_of_parquet)
    if suffix == ".arrow":
        return Shape(table_readers.rows_of_arrow)
    shape = _json_shape(stream)
    stream.seek(0)
    return shape


def _json_shape(stream: Stream) -> Shape:
    # by lines and not by a peek, which may end with the first member of a gzip file
    head = stream.readline(json_readers.HEAD).removeprefix(codecs.BOM_UTF8)
    while head and not head.strip(b" \t\r\n"):
        head = stream.readline(json_readers.HEAD)
    start = head.lstrip(b" \t\r\n")
    if start.startswith(b"["):
        return Shape(json_readers.elements)
    if start.startswith(b"{"):
        if key := json_readers.wrapper_key(stream):
            return Shape(lambda stream, at: json_readers.wrapped(stream, key, at), f"its rows stand under {key!r}")
        if not start.rstrip().endswith(b"}") and json_readers.spans_lines(stream):
            return Shape(json_readers.objects)
    return Shape(json_readers.lines)
