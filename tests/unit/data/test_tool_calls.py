"""Nulls that a table made of absent keys leave no trace; those that a person wrote stay."""

from typing import Any

import pytest

from lockstep.data import layouts, tool_calls
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.field_checks import Rejected
from lockstep.data.records import Record
from lockstep.data.tool_calls import Nulls
from lockstep.settings.schema import Data
from lockstep.text import json_text
from lockstep.text.json_text import JsonObject

TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}, "y": None}}}


def row(arguments: Any, tools: Any, **turn: Any) -> ConversationRow:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]} | turn]
    parsed = layouts.parse(Record("f", 1, JsonObject([("messages", turns), ("tools", tools)])), Data())
    assert isinstance(parsed, ConversationRow), parsed
    return parsed


def arguments(parsed: ConversationRow) -> Any:
    return parsed.messages[1]["tool_calls"][0]["function"]["arguments"]


def test_nulls_of_a_table() -> None:
    nested = {"x": "1", "y": None, "deep": {"a": None, "b": [{"c": None, "d": 1}, None]}}
    parsed = row(nested, [TOOL])
    assert arguments(parsed) == {"x": "1", "deep": {"b": [{"d": 1}, None]}}  # an element of a list was written
    assert parsed.tools and parsed.tools[0]["function"]["parameters"]["properties"] == {"x": {"type": "string"}}
    assert parsed.remarks.noted["nulls_left_out"] == "4"
    assert arguments(row({"x": None, "y": None}, [TOOL])) == arguments(row(None, [TOOL])) == {}


def test_nulls_of_json() -> None:
    written = json_text.loads('{"x": null, "y": null, "z": 1}')
    tools = json_text.loads(
        '[{"name": "f", "parameters": {"properties": {"x": {"type": ["string", "null"]}, "y": null}}}]'
    )
    parsed = row(written, tools)
    assert arguments(parsed) == {"x": None, "z": 1}  # x may be null; y is no argument of this tool
    assert parsed.tools and parsed.tools[0]["function"]["parameters"]["properties"] == {
        "x": {"type": ["string", "null"]}
    }
    assert "nulls_left_out" in parsed.remarks.noted
    for others in (
        None,
        json_text.loads('[{"name": "g", "parameters": {"properties": {}}}]'),
        json_text.loads('[{"name": "f"}]'),
    ):
        parsed = row(json_text.loads('{"y": null}'), others)
        assert arguments(parsed) == {"y": None} and "nulls_left_out" not in parsed.remarks.noted
        unlisted = "calls_unlisted_tool" in parsed.remarks.noted
        assert parsed.remarks.noted.get("null_argument") == ("f(y)" if unlisted else None)


def test_a_call_of_a_tool_that_is_not_listed_is_noted() -> None:
    assert row({}, None).remarks.noted == {"calls_unlisted_tool": "f"}
    assert "calls_unlisted_tool" not in row({}, [TOOL]).remarks.noted
    assert row({}, [TOOL | {"name": "g"}]).remarks.noted["calls_unlisted_tool"] == "f"


def test_the_older_call_beside_a_text() -> None:
    older = {"name": "f", "arguments": '{"x": 1}'}
    turn = {"content": "I look.", "tool_calls": None, "function_call": older}
    parsed = row({}, [TOOL], **turn)
    assert parsed.messages[1]["content"] == "I look." and arguments(parsed) == {"x": 1}
    assert tool_calls.older_call({"name": None, "arguments": None}, Nulls()) == []  # of a table whose other rows call


def test_names_that_tools_have() -> None:
    tools = [{"name": "f"}]
    for name in tool_calls.TOOLS:
        assert tool_calls.tools_of({"tools": None, "functions": [], name: tools}, Nulls())
    assert tool_calls.tools_of({"tools": tools, "functions": tools}, Nulls())
    assert tool_calls.tools_of({"tools": " ", "tool_defs": None}, Nulls()) is None
    with pytest.raises(Rejected, match="differ"):
        tool_calls.tools_of({"tools": tools, "functions": [{"name": "g"}]}, Nulls())
