"""Conversations that two templates or tokenizers are tried on: the contract's golden ones, and rows of the training."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lockstep import paths
from lockstep.data import keys, layouts, readers
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.records import Record, Reject
from lockstep.errors import UserError
from lockstep.prompts import contract, golden_tools
from lockstep.prompts.template import Message
from lockstep.settings.schema import Data

MOST_ROWS = 1000  # of the training file


class Conversation(NamedTuple):
    """One of them.

    Attributes:
        name: for people.
        messages: the last one is an answer in rows of the training, and a question in golden ones.
    """

    name: str
    messages: list[Message]
    tools: list[object] | None = None


def golden() -> Iterator[Conversation]:
    """The contract's, those with tools among them."""
    for name, messages in contract.golden():
        yield Conversation(name, messages)
    for name, messages, tools in golden_tools.conversations():
        yield Conversation(name, messages, tools)


def rows(path: Path) -> list[Conversation]:
    """Rows of a file that was trained on, in any layout that stage 01 reads, at most MOST_ROWS.

    Raises:
        UserError: none can be read.
    """
    data = Data()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if readers.ROWS.search(file.name))
    kept: list[Conversation] = []
    refused: Reject | None = None
    for file in files:
        records = list(islice(readers.records(file), MOST_ROWS))
        first = [record for record in records[: keys.FIRST] if isinstance(record, Record)]
        names = keys.other_names(first, data)
        for record in records:
            row = record if isinstance(record, Reject) else layouts.parse(record, data, names)
            if isinstance(row, ConversationRow):
                messages = [dict(message) for message in row.messages]
                kept.append(Conversation(row.name, messages, list(row.tools) if row.tools else None))
            elif refused is None:
                refused = row
    if not kept:
        reason = f": {refused.file}:{refused.line} {refused.reason} {refused.detail}" if refused else ""
        raise UserError(f"--data {paths.label(path)} holds no rows that can be read{reason}")
    return kept[:MOST_ROWS]
