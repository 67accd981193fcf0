"""The names of a record's fields: those that the layouts read, others that are understood, and near misses.

Which names a file uses is decided once, by its first records, and not row by row: in a file that has `output`,
a row that has `response` instead is a mistake, and in a file whose rows all have `response` it is the answer.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from lockstep.data.records import Record
from lockstep.settings.schema import Data

FIRST = 50  # records of a file that tell its names

# What each layout reads of a record, and of a turn. `tools` has two more names in other programs.
SHARED = ("system", "tools", "functions", "tool_defs")
READ = {
    "alpaca": ("instruction", "input", "output", "history", *SHARED),
    "prompt_completion": ("prompt", "completion", *SHARED),
    "messages": ("messages", *SHARED),
    "sharegpt": ("conversations", *SHARED),
}
TURN = (
    "role", "content", "from", "value", "name", "tool_calls", "function_call", "tool_call_id", "reasoning_content",
    "reasoning", "weight", "loss", "loss_scale", "train", "training", "train_detail",
)  # fmt: skip
TOP = tuple(dict.fromkeys(name for names in READ.values() for name in names))

# Other names for question and answer, understood where a file has exactly one of each and no layout of its own.
QUESTIONS = (
    "instruction", "prompt", "query", "question", "user", "human", "问题", "提问", "问", "指令", "提示", "用户", "問題",
)  # fmt: skip
ANSWERS = (
    "output", "completion", "response", "answer", "assistant", "gpt", "bot",
    "答案", "回答", "答", "回复", "输出", "助手", "回應",
)  # fmt: skip
CHINESE_INPUT = "输入"
CONTEXTS = ("input", "context", CHINESE_INPUT, "上下文")
SYSTEMS = ("system", "system_prompt", "系统", "系统提示")
CONVERSATIONS = ("conversation", "dialog", "dialogue", "turns", "chat", "对话")


def other_names(records: Sequence[Record], data: Data) -> dict[str, str]:
    """Names of a file's fields that are read under another one: theirs → ours.

    Args:
        records: the first ones of the file.
    """
    fields = [renamed(record.value, data.columns) for record in records if isinstance(record.value, Mapping)]
    names = dict.fromkeys(name for record in fields for name, value in record.items() if not is_empty(value))
    every = dict.fromkeys(name for record in fields for name in record)
    by_case: dict[str, list[str]] = {}
    for name in every:
        by_case.setdefault(name.casefold(), []).append(name)
    # Instruction, OUTPUT: the right name in capitals, where the right one is nowhere
    result = {
        theirs[0]: ours for ours, theirs in by_case.items() if ours in TOP and ours not in every and len(theirs) == 1
    }
    folded = {result.get(name, name).casefold(): name for name in names if len(by_case[name.casefold()]) == 1}
    pairs = ({"instruction", "output"}, {"prompt", "completion"})
    if (
        data.format != "auto"
        or "messages" in folded
        or "conversations" in folded
        or any(p <= set(folded) for p in pairs)
    ):
        return result
    return result | _conversations(folded, fields) or result | _question_and_answer(folded)


def _conversations(names: Mapping[str, str], fields: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The name of the only field that holds turns, if there is one."""
    theirs = [names[name] for name in CONVERSATIONS if name in names]
    values = [record.get(theirs[0]) for record in fields] if len(theirs) == 1 else []
    return {theirs[0]: "messages"} if any(isinstance(value, list) for value in values) else {}


def _question_and_answer(names: Mapping[str, str]) -> dict[str, str]:
    questions = [name for name in QUESTIONS if name in names] or [name for name in ("input",) if name in names]
    answers = [name for name in ANSWERS if name in names]
    if len(questions) != 1 or len(answers) != 1:
        return {}  # only the user can know which of them are meant
    result = {names[questions[0]]: "instruction", names[answers[0]]: "output"}
    for ours, others in (("input", CONTEXTS), ("system", SYSTEMS)):
        theirs = [name for name in others if name in names and names[name] not in result]
        if len(theirs) == 1:
            result[names[theirs[0]]] = ours
    return {theirs: ours for theirs, ours in result.items() if theirs != ours}


def renamed(value: Mapping[str, Any], columns: tuple[str, ...]) -> Mapping[str, Any]:
    """The record under our names, where the settings map its own."""
    if not columns:
        return value
    names = dict(column.split("=", 1) for column in columns)  # our name → that of the record
    for ours, theirs in names.items():
        if theirs not in value and fold(theirs):  # a space or an invisible mark, which no command line can hold
            names[ours] = next((name for name in value if fold(name) == fold(theirs)), theirs)
    fields = {name: field for name, field in value.items() if name not in names.values()}
    for ours, theirs in names.items():
        if theirs in value:
            fields[ours] = value[theirs]
    return fields


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, an empty text, list or object."""
    return value is None or (isinstance(value, str | list | dict) and not value)


@lru_cache(10_000)
def fold(name: str) -> str:
    """A name without case, width, spaces, marks and invisible characters: equal for near misses."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", name).casefold())


def near_miss(fields: Mapping[str, Any], known: Sequence[str]) -> tuple[str, str] | None:
    """A field that is read under no name and whose name nearly is a known one, and that one; None for none."""
    unread = [name for name, value in fields.items() if name not in known and not is_empty(value)]
    if not unread or len(unread) > 1000:  # a record of thousands of keys is a table of another kind
        return None
    folded = {fold(name): name for name in known}
    if "input" in known and is_empty(fields.get("input")):  # a question that would be trained without its second part
        folded |= {fold(CHINESE_INPUT): "input"}
    return next(((name, folded[fold(name)]) for name in unread if fold(name) in folded), None)


def unread(fields: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Names of fields that hold something and that nothing reads."""
    known = set(known)
    return [name for name, value in fields.items() if name not in known and not is_empty(value)]
