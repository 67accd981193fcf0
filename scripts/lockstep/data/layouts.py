"""Records → rows, by the layout of their fields, or rejects with a reason.

Four layouts are known: Alpaca (instruction, input, output, history, system), prompt and
completion, OpenAI messages, and ShareGPT conversations. Any of them may have `tools` and `system`
beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lockstep.data import keys, marks, tool_calls
from lockstep.data.conversation_row import ConversationRow, Remarks
from lockstep.data.field_checks import MEDIA, Rejected, check_media, items, text_of
from lockstep.data.records import Record, Reject
from lockstep.data.tool_calls import Nulls
from lockstep.prompts import template_source
from lockstep.prompts.template import Message
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject

CALLS = ("function_call", "tool_call")  # turns whose text is a call: ShareGPT's and ms-swift's
# The role of a turn, by the names that layouts have for it.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", *CALLS), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "function", "tool_response"), "tool"),
}
# What preference pairs are called: in TRL and LLaMA-Factory, by OpenAI, and in other data sets.
PREFERENCES = (
    ("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
)  # fmt: skip
# Which roles may follow which; "" is the beginning, "calls" an answer that calls tools. An answer must be the last.
FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calls": ("tool",),
    "tool": ("tool", "assistant"),
}


@dataclass
class _Notes:
    """What is noticed while a row is read.

    Attributes:
        ignored: names of turns' fields that nothing reads.
        marked: places of turns that are marked not to be trained.
        renamed: roles that are read as another.
    """

    nulls: Nulls = field(default_factory=Nulls)
    ignored: dict[str, None] = field(default_factory=dict)
    marked: set[int] = field(default_factory=set)
    renamed: dict[str, None] = field(default_factory=dict)


def parse(record: Record, data: Data, names: Mapping[str, str] | None = None) -> ConversationRow | Reject:
    """The conversation in a record, by the settings' layout and names of columns.

    Args:
        names: fields that the file's rows have under other names: theirs → ours, as `keys.other_names` gives them.
    """
    try:
        return _parse(record, data, names or {})
    except Rejected as rejected:
        reason, detail = (*rejected.args, "")[:2]
        if isinstance(record.value, Mapping):
            reason, detail = _named(record.value, reason, detail)
        for theirs, ours in (names or {}).items():
            if detail.startswith(f"{ours}:"):  # a person looks for the file's own name
                detail = theirs + detail.removeprefix(ours)
        return ConversationRow((), record).reject(reason, detail)


def _named(value: Mapping[str, Any], reason: str, detail: str) -> tuple[str, str]:
    """A reason and its detail with what the row's own keys tell of it."""
    incomplete = reason.startswith("missing_") or reason == "no_last_answer"
    for liked, disliked in PREFERENCES if incomplete else ():
        if value.get(liked) and value.get(disliked):
            return "preference_pair", f"{liked} and {disliked}: preferences are not trained"
    if reason.startswith("missing_") and not detail:
        near = keys.near_miss(value, (reason.removeprefix("missing_"),))
        detail = f"{near[0]!r} is not {near[1]}" if near else ""
    return reason, detail


def _parse(record: Record, data: Data, names: Mapping[str, str]) -> ConversationRow:
    value = record.value
    if not isinstance(value, JsonObject):
        raise Rejected("not_an_object", f"{type(value).__name__}")
    if value.duplicate_key is not None:
        raise Rejected("duplicate_key", value.duplicate_key)
    fields, renamed = _under_our_names(keys.renamed(value, data.columns), names)
    check_media(fields)
    marked = marks.row_mark(fields)
    layout, notes = _layout(fields, data.format), _Notes()
    messages, untrained = LAYOUTS[layout](fields, data, notes)
    if system := text_of(fields, "system", None):
        if messages and messages[0]["role"] == "system":
            raise Rejected("two_system_messages")
        messages = [{"role": "system", "content": system}, *messages]
        untrained = {place + 1 for place in untrained}
    if near := keys.near_miss(fields, keys.READ[layout]):
        raise Rejected("unclear_key", f"{near[0]!r} is not {near[1]}")
    tools = tool_calls.tools_of(fields, notes.nulls)
    tool_calls.leave_out_nulls(messages, tools or (), notes.nulls)
    ignored = (*keys.unread(fields, (*keys.READ[layout], *marked, *MEDIA)), *notes.ignored)
    remarks = Remarks(ignored, (*renamed, *notes.renamed), _noted(messages, tools, notes))
    row = ConversationRow(tuple(messages), record, frozenset(untrained), tools, remarks)
    _check_order(row)
    if not row.answers:
        raise Rejected("nothing_to_train", "every answer is marked not to be trained")
    return row


def _under_our_names(fields: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The fields with those renamed that the file has under other names, and what was renamed."""
    theirs = [name for name in names if name in fields]
    for name in theirs:
        if not keys.is_empty(fields.get(names[name])):
            raise Rejected("unclear_key", f"both {name} and {names[name]}")
    taken = {names[name] for name in theirs}
    rest = {name: value for name, value in fields.items() if name not in names and name not in taken}
    return rest | {names[name]: fields[name] for name in theirs}, tuple(f"{name} → {names[name]}" for name in theirs)


def _noted(messages: list[Message], tools: tuple[Any, ...] | None, notes: _Notes) -> dict[str, str]:
    """Codes of what deserves a word, each with an example."""
    noted = {}
    if unlisted := tool_calls.unlisted_calls(messages, tools or ()):
        noted["calls_unlisted_tool"] = unlisted[0]["name"]
        if argument := tool_calls.null_argument(unlisted):  # no tool says whether a file format made it
            noted["null_argument"] = argument
    if notes.nulls.count:
        noted["nulls_left_out"] = str(notes.nulls.count)
    if notes.marked:
        noted["marked_turn"] = f"turn {min(notes.marked) + 1}"
    if text := marks.placeholder(message["content"] for message in messages):
        noted["placeholder"] = text
    if text := marks.media_placeholder(message["content"] for message in messages if message["role"] != "assistant"):
        noted["media_placeholder"] = text
    return noted


def _layout(fields: Mapping[str, Any], setting: str) -> str:
    """A key of LAYOUTS; which keys a record has tells it where the setting is auto."""
    if setting != "auto":
        return setting
    if fields.get("messages") not in (None, ""):
        return "messages"
    if fields.get("conversations") not in (None, ""):
        return "sharegpt"
    pair = ("prompt", "completion")
    if keys.is_empty(fields.get("instruction")) and any(not keys.is_empty(fields.get(name)) for name in pair):
        return "prompt_completion"  # a table of both layouts has columns of both
    return "prompt_completion" if any(map(fields.__contains__, pair)) and "instruction" not in fields else "alpaca"


# --- one function for each layout; returns messages, and the places of answers that carry no loss ---

Conversation = tuple[list[Message], set[int]]


def _alpaca(fields: Mapping[str, Any], data: Data, notes: _Notes) -> Conversation:
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


def _prompt_completion(fields: Mapping[str, Any], data: Data, notes: _Notes) -> Conversation:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):  # TRL's form: only the completion is trained
        context, _ = _turns(prompt, "prompt", data, notes)
        answers, untrained = _turns(completion, "completion", data, notes)
        return context + answers, set(range(len(context))) | {len(context) + place for place in untrained}
    return [
        {"role": "user", "content": text_of(fields, "prompt")},
        {"role": "assistant", "content": text_of(fields, "completion")},
    ], set()


def _messages(fields: Mapping[str, Any], data: Data, notes: _Notes) -> Conversation:
    return _turns(items(fields, "messages"), "messages", data, notes)


def _sharegpt(fields: Mapping[str, Any], data: Data, notes: _Notes) -> Conversation:
    return _turns(items(fields, "conversations"), "conversations", data, notes)


LAYOUTS: dict[str, Callable[[Mapping[str, Any], Data, _Notes], Conversation]] = {
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "sharegpt": _sharegpt,
}


def _turns(turns: list[Any], name: str, data: Data, notes: _Notes) -> Conversation:
    """Turns named role/content or from/value.

    Args:
        name: the field that holds them.
    """
    messages, untrained = [], set()
    calls: list[str] = []  # ids of calls that wait for a tool's answer
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise Rejected("wrong_type", f"turn {place + 1} is no object")
        if isinstance(turn, JsonObject) and turn.duplicate_key is not None:
            raise Rejected("duplicate_key", f"{turn.duplicate_key} in turn {place + 1}")
        turn = keys.renamed(turn, data.columns)
        if not isinstance(turn, JsonObject):  # a table gives every turn the keys of all
            turn = {key: value for key, value in turn.items() if value is not None}
        message = _message(turn, place, notes)
        if near := keys.near_miss(turn, keys.TURN):
            raise Rejected("unclear_key", f"{near[0]!r} is not {near[1]} in turn {place + 1}")
        if message["role"] == "tool" and calls:
            answered = message.setdefault("tool_call_id", calls[0])
            calls = [call for call in calls if call != answered]
        calls = [call["id"] for call in message.get("tool_calls", [])] or calls
        messages.append(message)
        notes.ignored |= dict.fromkeys(f"{name}[].{key}" for key in keys.unread(turn, (*keys.TURN, *MEDIA)))
        if marks.is_trained(turn, place) is False:
            if message["role"] != "assistant" and data.supervise == "prompt_too":
                raise Rejected("unclear_mark", f"turn {place + 1} is not to be trained, and prompt_too trains all")
            untrained.add(place)
            if message["role"] == "assistant":
                notes.marked.add(place)
    return messages, untrained


def _message(turn: Mapping[str, Any], place: int, notes: _Notes) -> Message:
    name_of_role = turn.get("role", turn.get("from"))
    role = ROLES.get(name_of_role) if isinstance(name_of_role, str) else None
    if role is None:
        where = (
            f"in turn {place + 1}" if name_of_role else f"in turn {place + 1}, whose keys are {', '.join(turn)[:200]}"
        )
        raise Rejected("unknown_role", f"{name_of_role!r} {where}")
    if name_of_role == "developer":  # OpenAI's newer name, by which requests are read the same way
        notes.renamed["role developer → system"] = None
    key = "value" if "content" not in turn and not {"from", "value"}.isdisjoint(turn) else "content"
    if name_of_role in CALLS:
        return {"role": role, "content": "", "tool_calls": tool_calls.calls_of_text(text_of(turn, key))}
    check_media(turn)
    calls = []
    if turn.get("tool_calls"):
        calls = [tool_calls.call_of(call, notes.nulls) for call in items(turn, "tool_calls")]
    if older := tool_calls.older_call(turn.get("function_call"), notes.nulls):
        if calls:
            raise Rejected("bad_tool_call", f"tool_calls and function_call in turn {place + 1}")
        calls = older
    if calls and role != "assistant":
        raise Rejected("bad_tool_call", f"a call by {role} in turn {place + 1}")
    if key not in turn and not calls:
        near = keys.near_miss(turn, (key,))
        raise Rejected(
            f"missing_{key}", f"{near[0]!r} is not {key} in turn {place + 1}" if near else f"turn {place + 1}"
        )
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
