"""Files of a user, record by record: JSONL, JSON arrays, CSV, Parquet, each also gzipped.

Records are read here and not by a data set loader, because loaders change dates, numbers and
missing fields without a word. Memory does not grow with the file.
"""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from lockstep import paths
from lockstep.data import json_readers, table_readers
from lockstep.data.records import BROKEN, BrokenFile, Parser, Record, Reject, Stream, Unreadable
from lockstep.errors import UserError


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
            for number, parsed in enumerate(_parser(path, stream), 1):
                if isinstance(parsed, Unreadable):
                    yield Reject(name, number, parsed.reason, parsed.detail, parsed.text)
                else:
                    yield Record(name, number, parsed.value, parsed.raw)
    except (BrokenFile, EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Reject(name, number + 1, BROKEN, str(error) or "ends too early", "")


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


def _parser(path: Path, stream: Stream) -> Parser:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in (".csv", ".tsv"):
        return table_readers.rows_of_csv(stream, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return table_readers.rows_of_parquet(stream)
    # by lines and not by a peek, which may end with the first member of a gzip file
    head = stream.readline(2**16).removeprefix(codecs.BOM_UTF8)
    while head and not head.strip(b" \t\r\n"):
        head = stream.readline(2**16)
    stream.seek(0)
    is_array = head.lstrip(b" \t\r\n").startswith(b"[")
    return json_readers.elements(stream) if is_array else json_readers.lines(stream)
