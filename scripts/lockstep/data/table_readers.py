"""Tables, row by row: CSV, TSV, Parquet and Arrow."""

import csv
import gzip
import io
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from lockstep.data.records import LARGEST, SHOWN, BrokenFile, Parsed, Parser, Place, Stream, Unreadable, spelled_out
from lockstep.text import encodings
from lockstep.text.json_text import JsonObject

# The first line by which spreadsheets tell each other what separates the fields.
_NAMED = re.compile(rb"(?:\xef\xbb\xbf)?sep=([,;|\t])\r?\n?\Z", re.IGNORECASE)


def delimiter(stream: Stream, usual: str) -> str:
    """What separates the fields of a CSV file's header: the usual mark, or another where that one separates nothing."""
    stream.seek(0)
    line = stream.readline(2**16)
    while line and not line.strip():
        line = stream.readline(2**16)
    if named := _NAMED.match(line):
        return named[1].decode()
    outside = re.sub(rb'"[^"]*"', b"", line)  # marks in quotes separate nothing
    if usual.encode() in outside:
        return usual
    counts = {mark: outside.count(mark.encode()) for mark in (",", ";", "\t", "|")}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else usual


def rows_of_csv(delimiter: str, stream: Stream, at: Place) -> Parser:
    """The rows of a table of text, under the names in its first row."""
    csv.field_size_limit(LARGEST)
    lines: list[str] = []  # that the reader took for the row at hand

    def remembered() -> Iterator[str]:
        for line in io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""):
            lines.append(line)
            yield line

    reader = csv.reader(remembered(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        lines.clear()
        at.line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _refused(error, lines, header)
            continue
        text = "".join(lines)
        if not fields:
            yield Unreadable("blank", "", "")
        elif header is None and _NAMED.match(text.encode("utf-8", "surrogateescape")):
            continue
        elif header is None:
            header = fields
            _check_header(header, text)
        elif spelled_out(text) != text:
            yield Unreadable("bad_utf8", _encoding_of(text).lstrip("; "), spelled_out(text))
        elif len(fields) != len(header):
            yield Unreadable("wrong_columns", f"{len(fields)} fields, {len(header)} in the header", text)
        else:
            pairs = [(name, field) for name, field in zip(header, fields, strict=True) if name]
            yield Parsed(JsonObject(pairs), text)


def _refused(error: csv.Error, lines: list[str], header: list[str] | None) -> Unreadable:
    """A row that csv refuses; raises BrokenFile where nobody knows at which line the next row begins."""
    text = spelled_out("".join(lines))
    too_large = "field limit" in str(error)
    if header is None:
        raise BrokenFile(f"the header cannot be read: {error}") from error
    if "unexpected end of data" in str(error) or (too_large and len(lines) > 1):
        raise BrokenFile(f"a quote is opened and never closed: {text[:80]}") from error
    if len(lines) > 1:  # what it took for one field may be any number of rows
        raise BrokenFile(f"a quote is opened, and closed {len(lines) - 1} lines later: {text[:80]}") from error
    return Unreadable("too_large" if too_large else "bad_csv", str(error), text[:SHOWN])


def _encoding_of(text: str) -> str:
    return encodings.guess(text.encode("utf-8", "surrogateescape"))


def _check_header(header: list[str], text: str) -> None:
    if spelled_out(text) != text:
        raise BrokenFile(f"the header is not UTF-8{_encoding_of(text)}")
    names = [name for name in header if name]  # spreadsheets end lines with empty columns
    if len(set(names)) != len(names):
        raise BrokenFile("the header names a column twice")


def rows_of_parquet(stream: Stream, at: Place) -> Parser:
    """The rows of a Parquet file. Objects in them are plain dicts, with all keys that any row has: see `tool_calls`."""
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryFile() as plain:
        if isinstance(stream, gzip.GzipFile):  # Parquet is read from its end
            while block := stream.read(2**24):
                plain.write(block)
        try:
            table = parquet.ParquetFile(plain if isinstance(stream, gzip.GzipFile) else stream)
            if len(set(table.schema_arrow.names)) != len(table.schema_arrow.names):
                raise BrokenFile("two columns have the same name")
            for batch in table.iter_batches(batch_size=1000):
                for place in range(batch.num_rows):
                    yield _row(batch, place)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise BrokenFile(f"not Parquet as a whole: {error}") from error


def rows_of_arrow(stream: Stream, at: Place) -> Parser:
    """The rows of an Arrow file, as `datasets` saves them: a stream of batches, or a file with an index."""
    import pyarrow
    from pyarrow import ipc

    with_index = stream.read(6) == b"ARROW1"
    stream.seek(0)
    try:
        reader = ipc.open_file(stream) if with_index else ipc.open_stream(stream)
        if len(set(reader.schema.names)) != len(reader.schema.names):
            raise BrokenFile("two columns have the same name")
        batches = map(reader.get_batch, range(reader.num_record_batches)) if with_index else reader
        for batch in batches:
            for place in range(batch.num_rows):
                yield _row(batch, place)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BrokenFile(f"not Arrow as a whole: {error}") from error


def _row(batch: Any, place: int) -> Parsed | Unreadable:
    try:
        pairs = [(name, _cell(batch.column(name)[place])) for name in batch.schema.names]
    except UnicodeDecodeError as error:
        return Unreadable("bad_utf8", "", error.object.decode("utf-8", errors="backslashreplace"))
    return Parsed(JsonObject(pairs), None)


def _cell(cell: Any) -> Any:
    """A cell's value, or its type where Python has no such value, as for a date in the year 20000, or on Mars."""
    try:
        return cell.as_py(maps_as_pydicts="strict")
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError, LookupError):  # with pytz installed, a time zone that is none is a KeyError
        return cell.type
