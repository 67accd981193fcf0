"""Rows: one conversation each, as a chat request would send it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from lockstep.data.records import Record, Reject
from lockstep.prompts.template import Message
from lockstep.text.unicode import printable

MOST_KEYS = 50  # of a record, that its reject keeps


@dataclass(frozen=True)
class Remarks:
    """What the ledger counts of a kept row beside its texts.

    Attributes:
        ignored: names of fields that hold something and that nothing reads; of turns as `messages[].name`.
        renamed: fields read under another name, as `query → instruction`.
        noted: code → an example of it: the codes of `notes.REMARKS`.
    """

    ignored: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    noted: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ConversationRow:
    """One conversation and where it stands.

    Attributes:
        messages: as a chat request would send them: role, content, and for tools `tool_calls`.
        untrained: places of answers that carry no loss (OpenAI's `"weight": 0`, TRL's prompts).
        tools: function descriptions in OpenAI's form, or None.
    """

    messages: tuple[Message, ...]
    record: Record = field(repr=False)
    untrained: frozenset[int] = frozenset()
    tools: tuple[Any, ...] | None = None
    remarks: Remarks = field(default_factory=Remarks, compare=False)

    @property
    def name(self) -> str:
        """file:line"""
        return f"{self.record.file}:{self.record.line}"

    @property
    def answers(self) -> list[int]:
        """Places of the answers that may be supervised."""
        return [
            place
            for place, message in enumerate(self.messages)
            if message["role"] == "assistant" and place not in self.untrained
        ]

    @property
    def system(self) -> str | None:
        """The system message, where there is one."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    @property
    def dialogue(self) -> str:
        """All that user and assistant say, for comparing rows."""
        return "\n".join(message["content"] for message in self.messages if message["role"] in ("user", "assistant"))

    def reject(self, reason: str, detail: str = "") -> Reject:
        """This row as a reject."""
        detail, text = printable(detail), printable(self.record.text)
        value = self.record.value
        keys = tuple(map(printable, islice(value, MOST_KEYS))) if isinstance(value, Mapping) else ()
        return Reject(self.record.file, self.record.line, reason, detail, text, self.record.file_line, keys)


def with_contents(row: ConversationRow, contents: list[str]) -> ConversationRow:
    """The row with other texts in its messages."""
    pairs = zip(row.messages, contents, strict=True)
    return replace(row, messages=tuple(message | {"content": content} for message, content in pairs))


def canonical(row: ConversationRow) -> str:
    """One spelling of what a row teaches: equal for equal conversations in any layout."""
    return json.dumps([row.messages, sorted(row.untrained), row.tools], sort_keys=True, ensure_ascii=False)


def packed(row: ConversationRow) -> tuple[list[dict[str, str | None]], str | None]:
    """The row's messages and tools as the columns of a split hold them; `unpacked` undoes it."""
    messages = []
    for message in row.messages:
        extra = {name: value for name, value in message.items() if name not in ("role", "content")}
        text = json.dumps(extra, ensure_ascii=False) if extra else None
        messages.append({"role": message["role"], "content": message["content"], "extra": text})
    return messages, json.dumps(row.tools, ensure_ascii=False) if row.tools else None


def unpacked(sample: Mapping[str, Any]) -> tuple[list[Message], list[Any] | None]:
    """One line of a split: its messages as a chat request sends them, and its tools."""
    messages = []
    for column in sample["messages"]:
        extra = json.loads(column["extra"]) if column["extra"] else {}
        messages.append({"role": column["role"], "content": column["content"]} | extra)
    return messages, json.loads(sample["tools"]) if sample["tools"] else None


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys of objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)
