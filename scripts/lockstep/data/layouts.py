"""Records → rows, by the layout of their fields, or rejects with a reason.

Four layouts are known: Alpaca (instruction, input, output, history, system), prompt and
completion, OpenAI messages, and ShareGPT conversations. Any of them may have `tools` and `system`
beside it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from lockstep.data.conversation_row import ConversationRow
from lockstep.data.field_checks import Rejected, check_json, check_media, items, parsed, text_of
from lockstep.data.records import Record, Reject
from lockstep.prompts import template_source
from lockstep.prompts.template import Message
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject

# The role of a turn, by the names that layouts have for it.
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
# Which roles may follow which; "" is the beginning, "calls" an answer that calls tools. An answer must be the last.
FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calls": ("tool",),
    "tool": ("tool", "assistant"),
}


def parse(record: Record, data: Data) -> ConversationRow | Reject:
    """The conversation in a record, by the settings' layout and names of columns."""
    try:
        return _parse(record, data)
    except Rejected as rejected:
        reason, detail = (*rejected.args, "")[:2]
        return ConversationRow((), record).reject(reason, detail)


def _parse(record: Record, data: Data) -> ConversationRow:
    value = record.value
    if not isinstance(value, JsonObject):
        raise Rejected("not_an_object", f"{type(value).__name__}")
    if value.duplicate_key is not None:
        raise Rejected("duplicate_key", value.duplicate_key)
    fields = _renamed(value, data.columns)
    check_media(fields)
    messages, untrained = LAYOUTS[_layout(fields, data.format)](fields, data)
    if system := text_of(fields, "system", None):
        if messages and messages[0]["role"] == "system":
            raise Rejected("two_system_messages")
        messages = [{"role": "system", "content": system}, *messages]
        untrained = {place + 1 for place in untrained}
    row = ConversationRow(tuple(messages), record, frozenset(untrained), _tools(fields.get("tools")))
    _check_order(row)
    if not row.answers:
        raise Rejected("nothing_to_train", "every answer has weight 0")
    return row


def _renamed(value: Mapping[str, Any], columns: tuple[str, ...]) -> Mapping[str, Any]:
    """The record under our names, where the settings map its own."""
    if not columns:
        return value
    names = dict(column.split("=", 1) for column in columns)  # our name → that of the record
    fields = {name: field for name, field in value.items() if name not in names.values()}
    for ours, theirs in names.items():
        if theirs in value:
            fields[ours] = value[theirs]
    return fields


def _layout(fields: Mapping[str, Any], setting: str) -> str:
    """A key of LAYOUTS; which keys a record has tells it where the setting is auto."""
    if setting != "auto":
        return setting
    if fields.get("messages") not in (None, ""):
        return "messages"
    if fields.get("conversations") not in (None, ""):
        return "sharegpt"
    of_pairs = "prompt" in fields or "completion" in fields
    return "prompt_completion" if of_pairs and "instruction" not in fields else "alpaca"


# --- one function for each layout; returns messages, and the places of answers that carry no loss ---

Conversation = tuple[list[Message], set[int]]


def _alpaca(fields: Mapping[str, Any], data: Data) -> Conversation:
    instruction, context = text_of(fields, "instruction"), text_of(fields, "input", "")
    answer = text_of(fields, "output")
    messages: list[Message] = []
    for turn in items(fields, "history") if fields.get("history") not in (None, "") else []:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise Rejected("wrong_type", "history must hold pairs of texts")
        for role, content in zip(("user", "assistant"), turn, strict=True):
            messages.append({"role": role, "content": text_of({"history": content}, "history")})
    question = template_source.fold(instruction, context, data.template)
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": answer}], set()


def _prompt_completion(fields: Mapping[str, Any], data: Data) -> Conversation:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):  # TRL's form: only the completion is trained
        context, _ = _turns(prompt, data.columns)
        answers, untrained = _turns(completion, data.columns)
        return context + answers, set(range(len(context))) | {len(context) + place for place in untrained}
    return [
        {"role": "user", "content": text_of(fields, "prompt")},
        {"role": "assistant", "content": text_of(fields, "completion")},
    ], set()


def _messages(fields: Mapping[str, Any], data: Data) -> Conversation:
    return _turns(items(fields, "messages"), data.columns)


def _sharegpt(fields: Mapping[str, Any], data: Data) -> Conversation:
    return _turns(items(fields, "conversations"), data.columns)


LAYOUTS: dict[str, Callable[[Mapping[str, Any], Data], Conversation]] = {
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "sharegpt": _sharegpt,
}


def _turns(turns: list[Any], columns: tuple[str, ...] = ()) -> Conversation:
    """Turns named role/content or from/value."""
    messages, untrained = [], set()
    calls: list[str] = []  # ids of calls that wait for a tool's answer
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise Rejected("wrong_type", f"turn {place + 1} is no object")
        if isinstance(turn, JsonObject) and turn.duplicate_key is not None:
            raise Rejected("duplicate_key", f"{turn.duplicate_key} in turn {place + 1}")
        turn = _renamed(turn, columns)
        message = _message(turn, place)
        if message["role"] == "tool" and calls:
            answered = message.setdefault("tool_call_id", calls[0])
            calls = [call for call in calls if call != answered]
        calls = [call["id"] for call in message.get("tool_calls", [])] or calls
        messages.append(message)
        if turn.get("weight") not in (None, 0, 1):
            raise Rejected("wrong_type", f"weight {turn['weight']!r} in turn {place + 1}: 0 or 1 is known")
        if turn.get("weight") == 0:
            untrained.add(place)
    return messages, untrained


def _message(turn: Mapping[str, Any], place: int) -> Message:
    name_of_role = turn.get("role", turn.get("from"))
    role = ROLES.get(name_of_role) if isinstance(name_of_role, str) else None
    if role is None:
        raise Rejected("unknown_role", f"{name_of_role!r} in turn {place + 1}")
    key = "value" if "content" not in turn and not {"from", "value"}.isdisjoint(turn) else "content"
    if name_of_role == "function_call":
        return {"role": role, "content": "", "tool_calls": _function_calls(text_of(turn, key))}
    check_media(turn)
    calls = [_call(call) for call in items(turn, "tool_calls")] if turn.get("tool_calls") else []
    if calls and role != "assistant":
        raise Rejected("bad_tool_call", f"a call by {role} in turn {place + 1}")
    message: Message = {"role": role, "content": text_of(turn, key, "" if calls else ...)}
    if calls:
        message["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        if turn.get(name) is not None:
            message[name] = text_of(turn, name)
    for name in ("reasoning_content", "reasoning"):
        if turn.get(name):  # templates read one or the other, and servers hand them both
            message["reasoning_content"] = message["reasoning"] = text_of(turn, name)
    return message


# --- tools ---


def _function_calls(text: str) -> list[Any]:
    """ShareGPT's function_call turn: one call, or a list of them, as JSON."""
    value = parsed(text, "bad_tool_call")
    if value == []:
        raise Rejected("bad_tool_call", "an empty list of calls")
    return [_call(call) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any) -> dict[str, Any]:
    """A call in OpenAI's form. Its arguments become an object, as servers hand them to templates.

    Some templates print a call's id, so it is kept. A call without one gets nine letters and digits
    of its content's hash: the same in every run, and what Mistral's templates ask for.
    """
    check_json(call, "bad_tool_call")
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Rejected("bad_tool_call", "a call needs a name")
    arguments = function.get("arguments", {})
    arguments = parsed(arguments, "bad_tool_call") if isinstance(arguments, str) else arguments
    if not isinstance(arguments, Mapping):
        raise Rejected("bad_tool_call", "arguments must be an object")
    check_json(arguments, "bad_tool_call")
    content = {"arguments": arguments, "name": function["name"]}  # in the order in which vLLM hands them to templates
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    name = call.get("id") or hashlib.blake2b(text.encode(), digest_size=8).hexdigest()[:9]
    if not isinstance(name, str):
        raise Rejected("bad_tool_call", "a call's id must be text")
    return {"id": name, "function": content, "type": "function"}


def _tools(value: Any) -> tuple[Any, ...] | None:
    """Function descriptions in OpenAI's form, from a list or its JSON text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    tools = parsed(value, "bad_tools") if isinstance(value, str) else value
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Rejected("bad_tools", "tools must be a list of objects")
    check_json(tools, "bad_tools")
    return tuple(map(_tool, tools)) or None


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with the keys, and in the order, in which vLLM hands a request's tools to the template."""
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Rejected("bad_tools", "a tool needs a name")
    description = {name: function.get(name) for name in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        description["strict"] = function["strict"]
    return {"type": "function", "function": description}


def _check_order(row: ConversationRow) -> None:
    """Roles follow each other as FOLLOWS says, and no question or answer is empty."""
    before = ""
    for place, message in enumerate(row.messages):
        role, content = message["role"], message["content"]
        if role not in FOLLOWS[before]:
            raise Rejected("bad_turn_order", f"turn {place + 1}: {role} {'after ' + before if before else 'first'}")
        if role == "user" and not content.strip():
            raise Rejected("empty_prompt", f"turn {place + 1}")
        if role == "assistant" and not content.strip() and "tool_calls" not in message:
            raise Rejected("empty_answer", f"turn {place + 1}")
        before = "calls" if message.get("tool_calls") else role
    if before not in ("assistant", "calls"):
        raise Rejected("no_last_answer", f"ends with {before or 'nothing'}")
