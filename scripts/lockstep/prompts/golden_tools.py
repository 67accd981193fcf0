"""Test conversations with tools: described, called, and answered, as a client sends them."""

import json
from typing import Any

from lockstep.prompts.template import Message

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city. 查询天气。",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OTHER_TOOL = {
    "type": "function",
    "function": {
        "name": "book_table",
        "description": "Books a table.",
        "parameters": {
            "type": "object",
            "properties": {"guests": {"type": "integer", "minimum": 1}, "outside": {"type": ["boolean", "null"]}},
        },
        "strict": True,
    },
}
QUESTION: Message = {"role": "user", "content": "北京今天天气怎么样？"}


def conversations() -> list[tuple[str, list[Message], list[Any]]]:
    """(name, messages, tools) of each; arguments of calls are JSON texts, as in requests."""
    call = _call("a1b2c3d4e", "weather", {"city": '北京 "东城" & <西城>'})
    both = [
        _call("b1b2c3d4e", "weather", {"city": "Paris"}),
        _call("c1b2c3d4e", "book_table", {"guests": 2, "day": 1.5}),
    ]
    asked: list[Message] = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return [
        ("a tool", [QUESTION], [TOOL]),
        ("two tools", [{"role": "system", "content": "Be brief."}, QUESTION], [TOOL, OTHER_TOOL]),
        ("a call and its result", [*asked, _result("a1b2c3d4e", "weather", '{"sky": "晴", "celsius": 18}')], [TOOL]),
        (
            "two calls beside a text, answered",
            [
                QUESTION,
                {"role": "assistant", "content": "我查一下。", "tool_calls": both},
                _result("b1b2c3d4e", "weather", "rain"),
                _result("c1b2c3d4e", "book_table", "done"),
                {"role": "assistant", "content": "Rain, and a table for two."},
                {"role": "user", "content": "谢谢！"},
            ],
            [TOOL, OTHER_TOOL],
        ),
    ]


def _call(name: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": name, "function": {"arguments": text, "name": function}, "type": "function"}


def _result(call: str, function: str, content: str) -> Message:
    return {"role": "tool", "content": content, "tool_call_id": call, "name": function}
