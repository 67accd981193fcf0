"""Tools and calls of them, from the forms that programs write to the one that servers hand to templates."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.data.field_checks import Rejected, check_json, parsed
from lockstep.data.keys import is_empty
from lockstep.prompts.template import Message
from lockstep.text.json_text import JsonObject

TOOLS = ("tools", "functions", "tool_defs")  # OpenAI's, its older one, and that of verifiers and prime-rl


class Nulls:
    """Counts nulls that are left out because a file format made them.

    Parquet and Arrow give every object all keys that any row's has; objects of theirs are plain dicts. JSON that was
    written from such a table has these keys as well, which the tools show: no argument or property of theirs is null.
    """

    def __init__(self) -> None:
        self.count = 0

    def without(self, value: Any) -> Any:
        """A value of a table without the keys that its objects have by the table alone."""
        if isinstance(value, Mapping) and not isinstance(value, JsonObject):
            kept = {key: self.without(inner) for key, inner in value.items() if inner is not None}
            self.count += len(value) - len(kept)
            return kept
        return [self.without(inner) for inner in value] if isinstance(value, list) else value

    def without_undeclared(self, arguments: Mapping[str, Any], parameters: Any) -> Mapping[str, Any]:
        """A call's arguments without nulls that its tool does not know."""
        declared = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if not isinstance(declared, Mapping) or parameters.get("additionalProperties"):
            return arguments
        kept = {key: value for key, value in arguments.items() if value is not None or key in declared}
        self.count += len(arguments) - len(kept)
        return kept

    def without_null_properties(self, parameters: Any) -> Any:
        """A tool's parameters without properties that have no schema."""
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if not isinstance(properties, Mapping):
            return parameters
        kept = {name: self.without_null_properties(schema) for name, schema in properties.items() if schema is not None}
        self.count += len(properties) - len(kept)
        return {**parameters, "properties": kept}


def calls_of_text(text: str) -> list[dict[str, Any]]:
    """ShareGPT's function_call turn: one call, or a list of them, as JSON."""
    value = parsed(text, "bad_tool_call")
    if value == []:
        raise Rejected("bad_tool_call", "an empty list of calls")
    return [call_of(inner, Nulls()) for inner in (value if isinstance(value, list) else [value])]


def older_call(value: Any, nulls: Nulls) -> list[dict[str, Any]]:
    """OpenAI's older `function_call` beside a text: its call, or none."""
    value = parsed(value, "bad_tool_call") if isinstance(value, str) and value.strip() else nulls.without(value)
    return [] if is_empty(value) else [call_of(value, nulls)]


def call_of(call: Any, nulls: Nulls) -> dict[str, Any]:
    """A call in OpenAI's form. Its arguments become an object, as servers hand them to templates.

    Some templates print a call's id, so it is kept. A call without one gets nine letters and digits
    of its content's hash: the same in every run, and what Mistral's templates ask for.
    """
    call = nulls.without(call)
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
    name = call.get("id") or _call_id(content)
    if not isinstance(name, str):
        raise Rejected("bad_tool_call", "a call's id must be text")
    return {"id": name, "function": content, "type": "function"}


def _call_id(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()[:9]


def tools_of(fields: Mapping[str, Any], nulls: Nulls) -> tuple[Any, ...] | None:
    """A row's function descriptions in OpenAI's form, under whichever name it has them."""
    given = [name for name in TOOLS if not is_empty(fields.get(name)) and str(fields[name]).strip()]
    if len(given) > 1 and any(fields[name] != fields[given[0]] for name in given):
        raise Rejected("bad_tools", f"{' and '.join(given)} differ")
    return _tools(fields[given[0]], nulls) if given else None


def _tools(value: Any, nulls: Nulls) -> tuple[Any, ...] | None:
    """From a list or its JSON text."""
    tools = parsed(value, "bad_tools") if isinstance(value, str) else nulls.without(value)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Rejected("bad_tools", "tools must be a list of objects")
    check_json(tools, "bad_tools")
    return tuple(_tool(tool, nulls) for tool in tools) or None


def _tool(tool: Mapping[str, Any], nulls: Nulls) -> dict[str, Any]:
    """A tool with the keys, and in the order, in which vLLM hands a request's tools to the template."""
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Rejected("bad_tools", "a tool needs a name")
    description = {name: function.get(name) for name in ("name", "description", "parameters")}
    description["parameters"] = nulls.without_null_properties(description["parameters"])
    if function.get("strict") is not None:
        description["strict"] = function["strict"]
    return {"type": "function", "function": description}


def leave_out_nulls(messages: Sequence[Message], tools: Sequence[Any], nulls: Nulls) -> None:
    """Take nulls that no tool knows out of the arguments of all calls. Changes the messages."""
    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call["function"]
            declared = parameters.get(function["name"])
            function["arguments"] = nulls.without_undeclared(function["arguments"], declared)


def unlisted_calls(messages: Sequence[Message], tools: Sequence[Any]) -> list[dict[str, Any]]:
    """The calls of functions that the row does not list among its tools: name and arguments of each."""
    listed = {tool["function"]["name"] for tool in tools}
    calls = (call["function"] for message in messages for call in message.get("tool_calls", ()))
    return [call for call in calls if call["name"] not in listed]


def null_argument(calls: Sequence[dict[str, Any]]) -> str | None:
    """The first argument of calls that is null, as `name(argument)`; None where there is none."""
    nulls = (f"{call['name']}({name})" for call in calls for name, value in call["arguments"].items() if value is None)
    return next(nulls, None)
