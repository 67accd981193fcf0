"""Rows of files, read as the data stage reads them, as far as a few seconds allow."""

import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from lockstep.data import cleaning, keys, layouts, readers
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.ledger import Ledger
from lockstep.data.records import Record, Reject
from lockstep.settings.schema import Data

MOST_ROWS = 20_000  # of a file
SECONDS = 2.0  # for a file


def records(path: Path) -> Iterator[Record | Reject]:
    """The first records of a file. Raises UserError where it cannot be read."""
    end = time.monotonic() + SECONDS
    for record in islice(readers.records(path), MOST_ROWS):
        yield record
        if time.monotonic() > end:
            return


def rows(given: Iterable[Record | Reject], data: Data) -> Iterator[ConversationRow | Reject]:
    """What the data stage makes of records, before anything is encoded."""
    iterator = iter(given)
    first = list(islice(iterator, keys.FIRST))
    names = keys.other_names([record for record in first if isinstance(record, Record)], data)
    for record in chain(first, iterator):
        row = record if isinstance(record, Reject) else layouts.parse(record, data, names)
        if isinstance(row, ConversationRow) and (fault := cleaning.fault(row, data)):
            row = row.reject(*fault)
        yield row


def problem(files: dict[str, list[Path]], data: Data) -> tuple[int, str]:
    """How many rows of the files were looked at, and why the data stage would refuse them; empty where it would not.

    Args:
        files: split → files.

    Raises:
        UserError: a file cannot be read.
    """
    ledger = Ledger(("train",))
    for split, paths in files.items():
        for path in paths:
            for row in rows(records(path), data):
                if isinstance(row, Reject):
                    ledger.drop(row.file, row.reason, row)
                else:
                    account = ledger.files[row.record.file]
                    account.lines += 1
                    account.kept += 1
                    ledger.splits["train"]["rows"] += split == "train"
    return ledger.lines, ledger.hopeless(data) or ledger.problem(data) or ""
