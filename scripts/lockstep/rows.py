"""Records → rows: one conversation each, with its text untouched, or a reject with its reason.

Four layouts are known: Alpaca (instruction, input, output, history, system), prompt and
completion, OpenAI messages, and ShareGPT conversations. `tools` and `system` may stand beside
any of them.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lockstep import records, template
from lockstep.config import Data
from lockstep.records import Object, Record, Reject

Message = dict[str, Any]

ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "bot": "assistant", "model": "assistant", "chatgpt": "assistant", "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
# What may follow what. A conversation may open with a system message and must end with an answer.
FOLLOWS = {"": "system user", "system": "user", "user": "assistant", "assistant": "user", "calls": "tool", "tool": "tool assistant"}  # fmt: skip
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
DEEPEST = 100  # levels of tools and arguments; all that handle them call themselves for each


@dataclass(frozen=True)
class Row:
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
    def said(self) -> str:
        """All that user and assistant say, for comparing rows."""
        return "\n".join(message["content"] for message in self.messages if message["role"] in ("user", "assistant"))

    def reject(self, reason: str, detail: str = "") -> Reject:
        """This row as a reject."""
        detail, text = records.printable(detail), records.printable(self.record.text)
        return Reject(self.record.file, self.record.line, reason, detail, text)


class _Rejected(Exception):
    """Arguments: the reason's code, and what exactly."""


def parse(record: Record, data: Data) -> Row | Reject:
    """The conversation in a record, by the layout and the names of columns in the settings."""
    try:
        return _parse(record, data)
    except _Rejected as rejected:
        reason, detail = (*rejected.args, "")[:2]
        return Row((), record).reject(reason, detail)


def _parse(record: Record, data: Data) -> Row:
    value = record.value
    if not isinstance(value, Object):
        raise _Rejected("not_an_object", f"{type(value).__name__}")
    if value.twice is not None:
        raise _Rejected("duplicate_key", value.twice)
    fields = _renamed(value, data.columns)
    _check_media(fields)
    messages, untrained = LAYOUTS[_layout(fields, data.format)](fields, data)
    if system := _text(fields, "system", None):
        if messages and messages[0]["role"] == "system":
            raise _Rejected("two_system_messages")
        messages, untrained = [{"role": "system", "content": system}, *messages], {place + 1 for place in untrained}
    row = Row(tuple(messages), record, frozenset(untrained), _tools(fields.get("tools")))
    _check_order(row)
    if not row.answers:
        raise _Rejected("nothing_to_train", "every answer has weight 0")
    return row


def _renamed(value: Object, columns: tuple[str, ...]) -> Mapping[str, Any]:
    """The record under our names, where the settings map its own."""
    if not columns:
        return value
    names = dict(column.split("=", 1) for column in columns)
    taken = set(names.values())
    return {k: v for k, v in value.items() if k not in taken} | {
        ours: value[theirs] for ours, theirs in names.items() if theirs in value
    }


def _layout(fields: Mapping[str, Any], wanted: str) -> str:
    if wanted != "auto":
        return wanted
    if fields.get("messages") not in (None, ""):
        return "messages"
    if fields.get("conversations") not in (None, ""):
        return "sharegpt"
    of_pairs = "prompt" in fields or "completion" in fields
    return "prompt_completion" if of_pairs and "instruction" not in fields else "alpaca"


# --- layouts: each returns messages, and the places of answers that carry no loss ---

Conversation = tuple[list[Message], set[int]]


def _alpaca(fields: Mapping[str, Any], data: Data) -> Conversation:
    instruction, context = _text(fields, "instruction"), _text(fields, "input", "")
    answer = _text(fields, "output")
    messages: list[Message] = []
    for turn in _list(fields, "history") if fields.get("history") not in (None, "") else []:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise _Rejected("wrong_type", "history must hold pairs of texts")
        for role, content in zip(("user", "assistant"), turn, strict=True):
            messages.append({"role": role, "content": _text({"history": content}, "history")})
    question = template.fold(instruction, context, data.template)
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": answer}], set()


def _prompt_completion(fields: Mapping[str, Any], data: Data) -> Conversation:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):  # TRL's form: only the completion is trained
        context, _ = _turns(prompt)
        answers, untrained = _turns(completion)
        return context + answers, set(range(len(context))) | {len(context) + place for place in untrained}
    return [
        {"role": "user", "content": _text(fields, "prompt")},
        {"role": "assistant", "content": _text(fields, "completion")},
    ], set()


def _messages(fields: Mapping[str, Any], data: Data) -> Conversation:
    return _turns(_list(fields, "messages"), data.columns)


def _sharegpt(fields: Mapping[str, Any], data: Data) -> Conversation:
    return _turns(_list(fields, "conversations"), data.columns)


LAYOUTS: dict[str, Callable[[Mapping[str, Any], Data], Conversation]] = {
    "alpaca": _alpaca, "prompt_completion": _prompt_completion, "messages": _messages, "sharegpt": _sharegpt,
}  # fmt: skip


def _turns(turns: list[Any], columns: tuple[str, ...] = ()) -> Conversation:
    """Turns named role/content or from/value."""
    messages, untrained = [], set()
    calls: list[str] = []  # ids of calls that wait for a tool's answer
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise _Rejected("wrong_type", f"turn {place + 1} is no object")
        if isinstance(turn, Object) and turn.twice is not None:
            raise _Rejected("duplicate_key", f"{turn.twice} in turn {place + 1}")
        turn = _renamed(turn, columns) if isinstance(turn, Object) else turn
        message = _message(turn, place)
        if message["role"] == "tool" and calls:
            answered = message.setdefault("tool_call_id", calls[0])
            calls = [call for call in calls if call != answered]
        calls = [call["id"] for call in message.get("tool_calls", [])] or calls
        messages.append(message)
        if turn.get("weight") not in (None, 0, 1):
            raise _Rejected("wrong_type", f"weight {turn['weight']!r} in turn {place + 1}: 0 or 1 is known")
        if turn.get("weight") == 0:
            untrained.add(place)
    return messages, untrained


def _message(turn: Mapping[str, Any], place: int) -> Message:
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise _Rejected("unknown_role", f"{said!r} in turn {place + 1}")
    key = "value" if "content" not in turn and not {"from", "value"}.isdisjoint(turn) else "content"
    if said == "function_call":
        return {"role": role, "content": "", "tool_calls": _function_calls(_text(turn, key))}
    _check_media(turn)
    calls = [_call(call) for call in _list(turn, "tool_calls")] if turn.get("tool_calls") else []
    if calls and role != "assistant":
        raise _Rejected("bad_tool_call", f"a call by {role} in turn {place + 1}")
    message: Message = {"role": role, "content": _text(turn, key, "" if calls else ...)}
    if calls:
        message["tool_calls"] = calls
    for name in ("reasoning_content", "name", "tool_call_id"):
        if turn.get(name) is not None:
            message[name] = _text(turn, name)
    return message


# --- tools ---


def _function_calls(text: str) -> list[Any]:
    """ShareGPT's function_call turn: one call, or a list of them, as JSON."""
    value = _json(text, "bad_tool_call")
    if value == []:
        raise _Rejected("bad_tool_call", "an empty list of calls")
    return [_call(call) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any) -> dict[str, Any]:
    """A call in OpenAI's form. Its arguments become an object, as servers hand them to templates.

    Some templates print a call's id, so it is kept. A call without one gets nine letters and digits
    of its content's hash: the same in every run, and what Mistral's templates ask for.
    """
    _check_json(call, "bad_tool_call")
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _Rejected("bad_tool_call", "a call needs a name")
    arguments = function.get("arguments", {})
    arguments = _json(arguments, "bad_tool_call") if isinstance(arguments, str) else arguments
    if not isinstance(arguments, Mapping):
        raise _Rejected("bad_tool_call", "arguments must be an object")
    _check_json(arguments, "bad_tool_call")
    made = {"arguments": arguments, "name": function["name"]}  # in the order in which vLLM hands them to templates
    text = json.dumps(made, sort_keys=True, ensure_ascii=False)
    name = call.get("id") or hashlib.blake2b(text.encode(), digest_size=8).hexdigest()[:9]
    if not isinstance(name, str):
        raise _Rejected("bad_tool_call", "a call's id must be text")
    return {"id": name, "function": made, "type": "function"}


def _tools(value: Any) -> tuple[Any, ...] | None:
    """Function descriptions in OpenAI's form, from a list or its JSON text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    found = _json(value, "bad_tools") if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise _Rejected("bad_tools", "tools must be a list of objects")
    _check_json(found, "bad_tools")
    return tuple(map(_tool, found)) or None


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with the keys, and in the order, in which vLLM hands a request's tools to the template."""
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _Rejected("bad_tools", "a tool needs a name")
    made = {name: function.get(name) for name in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        made["strict"] = function["strict"]
    return {"type": "function", "function": made}


def _json(text: str, reason: str) -> Any:
    try:
        return records.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Rejected(reason, f"not JSON: {error}") from error


# --- checks ---


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    """A list, or in tables its JSON text."""
    if name not in fields:
        raise _Rejected(f"missing_{name}")
    value = fields[name]
    value = _json(value, "bad_json") if isinstance(value, str) else value
    if not isinstance(value, list):
        raise _Rejected("wrong_type", f"{name} must be a list")
    return value


def _text(fields: Mapping[str, Any], name: str, missing: Any = ...) -> str:
    """A field that must be text; `missing` stands for an absent or null one, unless it is `...`."""
    if missing is not ... and fields.get(name) is None:
        return missing  # type: ignore[no-any-return]
    if name not in fields:
        raise _Rejected(f"missing_{name}")
    value = fields[name]
    if name == "content" and isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("text") if value[0].get("type") == "text" else value  # one part of text is text
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise _Rejected(
            "not_text" if name == "content" and isinstance(value, list) else "wrong_type", f"{name}: {kind}"
        )
    _check_text(value, name)
    return value


def _check_text(text: str, name: str) -> None:
    if "\0" in text:
        raise _Rejected("nul_character", name)
    if not text.isascii() and records.printable(text) != text:
        raise _Rejected("lone_surrogate", name)


def _check_media(fields: Mapping[str, Any]) -> None:
    for name in MEDIA:
        if fields.get(name):
            raise _Rejected("not_text", name)


def _check_json(value: Any, reason: str, depth: int = 0) -> None:
    """Tools and calls are written as JSON again: whatever would not come out as it went in is rejected."""
    if depth > DEEPEST:
        raise _Rejected(reason, f"nested deeper than {DEEPEST} levels")
    if isinstance(value, str):
        _check_text(value, "tools")
    elif isinstance(value, Mapping):
        if isinstance(value, Object) and value.twice is not None:
            raise _Rejected("duplicate_key", value.twice)
        for key, inner in value.items():
            _check_text(key, "tools")
            _check_json(inner, reason, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_json(inner, reason, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _Rejected(reason, f"{value} is no number in JSON")
    elif value is not None and not isinstance(value, bool | int | float):
        raise _Rejected(reason, f"{type(value).__name__} is no type of JSON")


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


def _check_order(row: Row) -> None:
    before = ""
    for place, message in enumerate(row.messages):
        role, content = message["role"], message["content"]
        if role not in FOLLOWS[before].split():
            raise _Rejected("bad_turn_order", f"turn {place + 1}: {role} {'after ' + before if before else 'first'}")
        if role == "user" and not content.strip():
            raise _Rejected("empty_prompt", f"turn {place + 1}")
        if role == "assistant" and not content.strip() and "tool_calls" not in message:
            raise _Rejected("empty_answer", f"turn {place + 1}")
        before = "calls" if message.get("tool_calls") else role
    if before not in ("assistant", "calls"):
        raise _Rejected("no_last_answer", f"ends with {before or 'nothing'}")


# --- rows in other forms ---


def with_contents(row: Row, contents: list[str]) -> Row:
    """The row with other texts in its messages."""
    pairs = zip(row.messages, contents, strict=True)
    return replace(row, messages=tuple(message | {"content": content} for message, content in pairs))


def canonical(row: Row) -> str:
    """One spelling of what a row teaches: equal for equal conversations in any layout."""
    return json.dumps([row.messages, sorted(row.untrained), row.tools], sort_keys=True, ensure_ascii=False)


def packed(row: Row) -> tuple[list[dict[str, str | None]], str | None]:
    """The row's messages and tools as the columns of a split hold them; `unpacked` undoes it."""
    messages = []
    for message in row.messages:
        extra = {name: value for name, value in message.items() if name not in ("role", "content")}
        text = json.dumps(extra, ensure_ascii=False) if extra else None
        messages.append({"role": message["role"], "content": message["content"], "extra": text})
    return messages, json.dumps(row.tools, ensure_ascii=False) if row.tools else None


def unpacked(sample: Mapping[str, Any]) -> tuple[list[Message], list[Any] | None]:
    """Messages as a chat request sends them, and tools, of one line of a split."""
    messages = [
        {"role": m["role"], "content": m["content"]} | (json.loads(m["extra"]) if m["extra"] else {})
        for m in sample["messages"]
    ]
    return messages, json.loads(sample["tools"]) if sample["tools"] else None
