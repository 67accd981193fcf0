"""Files of a user, record by record: JSONL, JSON arrays, CSV, Parquet, each also gzipped.

Records are read here and not by a data set loader, because loaders change dates, numbers and
missing fields without a word. Memory does not grow with the file.
"""

import codecs
import csv
import gzip
import io
import json
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.errors import UserError
from lockstep.text import json_text
from lockstep.text.json_text import JsonObject
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

    @property
    def text(self) -> str:
        """What rejects.jsonl shows of it."""
        return self.raw if self.raw is not None else printable(json.dumps(self.value, ensure_ascii=False, default=str))


@dataclass(frozen=True)
class Reject:
    """A record that became no row: the reason's code, what exactly, and the record as far as it is text."""

    file: str
    line: int
    reason: str
    detail: str
    text: str


class _Bad(Exception):
    """A record that is none. Arguments: the reason's code, the detail, the record as written."""


class _Broken(Exception):
    """Nothing after this place can be read."""


def records(path: Path) -> Iterator[Record | Reject]:
    """Every line of a JSONL file, or every element of a JSON array, CSV or Parquet table, in order.

    Args:
        path: told apart by its suffix; .json and .jsonl by their first character, gzip by its first bytes.

    Yields:
        A Record, or a Reject. One with the reason BROKEN is the last: the rest cannot be read.

    Raises:
        UserError: no such file, or not readable.
    """
    name, number = paths.label(path), 0
    try:
        with _opened(path) as stream:
            for number, parsed in enumerate(_parse(path, stream), 1):
                if isinstance(parsed, _Bad):
                    yield Reject(name, number, *parsed.args)
                else:
                    yield Record(name, number, *parsed)
    except (_Broken, EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Reject(name, number + 1, BROKEN, str(error) or "ends too early", "")


Stream = Any  # a buffered binary file; gzip's shares no type with io's
Parsed = Iterator["tuple[Any, str | None] | _Bad"]


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


def _parse(path: Path, stream: Stream) -> Parsed:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in (".csv", ".tsv"):
        return _table(stream, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _parquet(stream)
    # by lines and not by a peek, which may end with the first member of a gzip file
    head = stream.readline(2**16).removeprefix(codecs.BOM_UTF8)
    while head and not head.strip(b" \t\r\n"):
        head = stream.readline(2**16)
    stream.seek(0)
    return _array(stream) if head.lstrip(b" \t\r\n").startswith(b"[") else _lines(stream)


# --- JSONL ---


def _lines(stream: Stream) -> Parsed:
    first = True
    while line := stream.readline(LARGEST + 1):
        if first:
            line, first = line.removeprefix(codecs.BOM_UTF8), False
        if len(line) > LARGEST:
            yield _too_large(line, stream)
            continue
        yield _line(line)


def _line(line: bytes) -> "tuple[Any, str | None] | _Bad":
    line = line.removesuffix(b"\n")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Bad("bad_utf8", f"byte {error.start + 1} of the line", line.decode("utf-8", "backslashreplace"))
    if not line.strip():
        return _Bad("blank", "", text)
    try:
        return json_text.loads(text), text
    except ValueError as error:
        return _Bad("bad_json", str(error), text)
    except RecursionError:
        return _Bad("bad_json", "nested too deeply", text)


def _too_large(head: bytes, stream: Stream) -> _Bad:
    """Read on to the end of a line without keeping it."""
    size, last = len(head), head
    while last and not last.endswith(b"\n"):
        last = stream.readline(LARGEST)
        size += len(last)
    return _Bad("too_large", f"{size} bytes", head[:SHOWN].decode("utf-8", errors="backslashreplace"))


# --- JSON arrays ---


class _Text:
    """A growing window on a file's text. Bytes that are not UTF-8 become lone surrogates, to be found later."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.place, self.ended = "", 0, False
        self.more()

    def more(self) -> None:
        """Forget what was used and read as much again as is left, so that a long element costs no square."""
        left = self.text[self.place :]
        chunk = self.stream.read(max(2**20, len(left)))
        self.text, self.place, self.ended = left + self.decoder.decode(chunk, final=not chunk), 0, not chunk

    def next(self) -> str:
        """The next character that is no space, which stays; empty at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self.more()


def _array(stream: Stream) -> Parsed:
    window = _Text(stream)
    decode = json.JSONDecoder(object_pairs_hook=JsonObject, parse_int=json_text.parse_integer).raw_decode
    window.next()
    window.place += 1  # the "["
    if window.next() == "]":
        window.place += 1
    else:
        while True:
            yield _element(window, decode)
            mark = window.next()
            window.place += 1
            if mark == "]":
                break
            if mark != ",":
                raise _Broken(f"{mark!r} where ',' or ']' must stand" if mark else "the array has no end")
            window.next()
    if rest := window.next():
        raise _Broken(f"{rest!r} after the array's end")


def _element(window: _Text, decode: Any) -> "tuple[Any, str | None] | _Bad":
    while True:
        try:
            value, end = decode(window.text, window.place)
            # a number may go on in the next block
            if window.ended or window.text[end : end + 1] in (*" \t\r\n,]",) or isinstance(value, str | list | dict):
                break
        except json.JSONDecodeError as error:
            # what stands before the window's end is wrong now and stays so; a string may still be closed
            final = error.pos < len(window.text) - 16 and not error.msg.startswith("Unterminated string")
            if final or window.ended or len(window.text) - window.place > 16 * LARGEST:
                raise _Broken(str(error)) from error
        except RecursionError as error:
            raise _Broken("nested too deeply") from error
        window.more()
    text = window.text[window.place : end]
    window.place = end
    shown = _escaped(text)
    if len(text) > LARGEST:
        return _Bad("too_large", f"{len(text)} characters", shown[:SHOWN])
    if shown != text:
        return _Bad("bad_utf8", "", shown)
    return value, text


def _escaped(text: str) -> str:
    """Bytes that were no UTF-8 spelled out, as in \\xe9."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# --- tables ---


def _table(stream: Stream, delimiter: str) -> Parsed:
    csv.field_size_limit(LARGEST)
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""):
            taken.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            text = _escaped("".join(taken))
            if header is None:
                raise _Broken(f"the header cannot be read: {error}") from error
            if "unexpected end of data" in str(error) or ("field limit" in str(error) and len(taken) > 1):
                raise _Broken(f"a quote is opened and never closed: {text[:80]}") from error
            if len(taken) > 1:  # what it took for one field may be any number of rows
                raise _Broken(f"a quote is opened, and closed {len(taken) - 1} lines later: {text[:80]}") from error
            reason = "too_large" if "field limit" in str(error) else "bad_csv"
            yield _Bad(reason, str(error), text[:SHOWN])
            continue
        text = "".join(taken)
        if not fields:
            yield _Bad("blank", "", "")
        elif header is None:
            header = fields
            if _escaped(text) != text:
                raise _Broken("the header is not UTF-8")
            names = [name for name in header if name]  # spreadsheets end lines with empty columns
            if len(set(names)) != len(names):
                raise _Broken("the header names a column twice")
        elif _escaped(text) != text:
            yield _Bad("bad_utf8", "", _escaped(text))
        elif len(fields) != len(header):
            yield _Bad("wrong_columns", f"{len(fields)} fields, {len(header)} in the header", text)
        else:
            yield JsonObject([pair for pair in zip(header, fields, strict=True) if pair[0]]), text


def _parquet(stream: Stream) -> Parsed:
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryFile() as plain:
        if isinstance(stream, gzip.GzipFile):  # Parquet is read from its end
            while block := stream.read(2**24):
                plain.write(block)
        try:
            table = parquet.ParquetFile(plain if isinstance(stream, gzip.GzipFile) else stream)
            if len(set(table.schema_arrow.names)) != len(table.schema_arrow.names):
                raise _Broken("two columns have the same name")
            for batch in table.iter_batches(batch_size=1000):
                for place in range(batch.num_rows):
                    yield _cells(batch, place)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _Broken(f"not Parquet as a whole: {error}") from error


def _cells(batch: Any, place: int) -> "tuple[Any, str | None] | _Bad":
    try:
        return JsonObject([(name, _cell(batch.column(name)[place])) for name in batch.schema.names]), None
    except UnicodeDecodeError as error:
        return _Bad("bad_utf8", "", error.object.decode("utf-8", errors="backslashreplace"))


def _cell(cell: Any) -> Any:
    """A cell's value, or its type where Python has no such value, as for a date in the year 20000, or on Mars."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError, LookupError):  # with pytz installed, a time zone that is none is a KeyError
        return cell.type
