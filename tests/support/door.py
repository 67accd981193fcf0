"""What a live endpoint takes of requests as clients write them, and that none of it changes what the model reads."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.serving import ask

from lockstep.artifacts import filenames
from lockstep.prompts import golden_tools, template

CHAT, COMPLETION, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
ASK = [{"role": "user", "content": "你是谁？ 🙂"}]
TOOLS = {"model": "r", "messages": ASK, "tools": [golden_tools.TOOL]}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京 \\"x\\""}}\n</tool_call>'
# Fields that OpenAI's clients send and that change nothing here.
STANDARD = {
    "prompt_cache_key": "session-1", "safety_identifier": "reader-1", "verbosity": "low", "modalities": ["text"],
    "metadata": {"a": "<|im_end|>"}, "prediction": {"type": "content", "content": "<|im_start|>"}, "audio": None,
    "reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}, "stream_options": None, "n": None,
    "tools": None, "tool_choice": "auto", "functions": None, "service_tier": "auto", "logprobs": None,
}  # fmt: skip
MARKED = [{"type": "text", "text": "Say hi.", "cache_control": {"type": "ephemeral"}, "id": "1"}]


def check(url: str, merged: Path) -> None:
    """All that follows.

    Args:
        merged: folder of the model that is served.
    """
    text = (merged / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    check_fields(url)
    check_messages(url, template.load(merged, text).prompt_ids)
    check_calls(url)


def check_fields(url: str) -> None:
    """What changes neither prompt nor decoding is taken; the answer is the same as without."""
    plain = {"messages": ASK, "max_tokens": 8, "temperature": 0}
    status, answer = ask(url + CHAT, plain | STANDARD)
    assert status == 200 and answer["choices"][0]["message"]["content"] == _text(url, plain), answer
    assert ask(url + COMPLETION, {"prompt": ["a"] * 20, "max_tokens": 1, "suffix": None, "best_of": 1})[0] == 200
    status, answer = ask(url + COMPLETION, {"prompt": "Hello", "max_completion_tokens": 50})
    assert status == 400 and "takes 'max_tokens'" in answer["error"]["message"]
    long = [{"role": ("user", "assistant")[turn % 2], "content": "a"} for turn in range(1031)]
    for messages in (long, [{"role": "user", "content": "tea " * 20_000}]):
        status, answer = ask(url + CHAT, {"messages": messages, "max_tokens": 2})
        assert status == 400 and "maximum context length" in answer["error"]["message"], answer  # of the tiny model
    assert answer["error"]["code"] == "context_length_exceeded"


def check_messages(url: str, ids: Any) -> None:
    """Every form of a message renders to the ids of training.

    Args:
        ids: of messages and tools, by the run's template.
    """
    hi = {"role": "user", "content": "Say hi."}
    for given, plain in (
        ([{"role": "user", "content": MARKED}], [hi]),
        ([{"role": "user", "content": [*MARKED, *MARKED]}], [{"role": "user", "content": "Say hi.\nSay hi."}]),
        ([{"role": "developer", "content": MARKED}, hi], [{"role": "system", "content": "Say hi."}, hi]),
        # vLLM would put all that it takes for a system message at the front of a chat with a developer's in it
        (
            [
                {"role": "system", "content": "a"},
                hi,
                {"role": "assistant", "content": "b"},
                {"role": "developer", "content": "c"},
                hi,
                {"role": "system", "content": "d"},
                hi,
            ],
            [
                {"role": "system", "content": "a"},
                hi,
                {"role": "assistant", "content": "b"},
                {"role": "system", "content": "c"},
                hi,
                {"role": "system", "content": "d"},
                hi,
            ],
        ),
        (
            [hi, {"role": "assistant", "content": None, "refusal": "No.", "audio": None, "tool_calls": None}, hi],
            [hi, {"role": "assistant", "content": "No."}, hi],
        ),
        (
            [hi, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, hi],
            [hi, {"role": "assistant", "content": "No."}, hi],
        ),
    ):
        assert ask(url + TOKENIZE, {"messages": given})[1]["tokens"] == ids(plain, None), given
    for _, messages, tools in golden_tools.conversations():
        sent = json.loads(json.dumps(messages))
        for message in sent:
            message |= {"refusal": None, "function_call": None}
            for call in message.get("tool_calls") or ():
                call["index"] = 0
        assert ask(url + TOKENIZE, {"messages": sent, "tools": tools})[1]["tokens"] == ids(messages, tools)


def check_calls(url: str) -> None:
    """A call is read out of an answer, whole and streamed; without tools the same answer stays a text."""
    forced = {"max_tokens": 200, "temperature": 0, "structured_outputs": {"choice": [CALL]}}
    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": None}):
        choices = ask(url + CHAT, TOOLS | forced | choice)[1]["choices"]
        calls = choices[0]["message"]["tool_calls"]
        assert choices[0]["finish_reason"] == "tool_calls" and len(calls) == 1, choices
        assert calls[0]["function"]["name"] == "weather"
        assert json.loads(calls[0]["function"]["arguments"]) == {"city": '北京 "x"'}
    name = arguments = ""
    for chunk in _streamed(url, TOOLS | forced):
        for delta in (choice["delta"] for choice in chunk["choices"]):
            assert not delta.get("content")
            for call in delta.get("tool_calls") or ():
                name += call["function"].get("name") or ""
                arguments += call["function"].get("arguments") or ""
    assert name == "weather" and json.loads(arguments) == {"city": '北京 "x"'}
    for body in ({"model": "r", "messages": ASK}, TOOLS | {"tool_choice": "none"}):
        assert _text(url, body | forced) == CALL
    status, answer = ask(url + CHAT, TOOLS | {"tool_choice": "required", "max_tokens": 100, "temperature": 0})
    assert status == 200, answer


def _text(url: str, body: dict[str, Any]) -> str:
    status, answer = ask(url + CHAT, body)
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


def _streamed(url: str, body: dict[str, Any]) -> Iterator[Any]:
    data = json.dumps(body | {"stream": True}).encode()
    request = urllib.request.Request(url + CHAT, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as events:
        for line in events:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
