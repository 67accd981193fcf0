"""Requests of OpenAI's Responses and Anthropic's Messages become chats, and answers are read by these services' SDKs."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lockstep.endpoint import protocol
from lockstep.serving import messages_route
from lockstep.serving.middleware import Guard
from lockstep.serving.request_rules import Rules

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "你是谁？"}
TOOL = {
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
DELTAS = [
    {"role": "assistant", "content": ""}, {"reasoning": "Hm"}, {"reasoning": "m."}, {"content": "I am "}, {"content": "a model"},
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"at": '}}]}, {"tool_calls": [{"index": 0, "function": {"arguments": '"it"}'}}]},
]  # fmt: skip
WHOLE = {"role": "assistant", "content": "I am a model", "reasoning": "Hmm.", "tool_calls": [CALL]}


class Inner:
    """The chat route; keeps what it was sent."""

    def __init__(self) -> None:
        self.path, self.body, self.headers = "", dict[str, Any](), dict[bytes, bytes]()
        self.finish_reason = "tool_calls"
        self.fails = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.path, self.headers = scope["path"], dict(scope["headers"])
        self.body = json.loads((await receive())["body"])
        if self.path == "/tokenize":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            return await send({"type": "http.response.body", "body": b'{"count": 7, "max_model_len": 9, "tokens": []}'})
        if not self.body.get("stream"):
            choice = {"index": 0, "message": WHOLE, "finish_reason": self.finish_reason, "stop_reason": None}
            answer = {"id": "x", "model": "r", "choices": [choice], "usage": USAGE}
            status = 404 if self.fails else 200
            error = {"error": {"message": "no such model", "type": "NotFoundError", "code": 404}}
            body = json.dumps(error if self.fails else answer).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            return await send({"type": "http.response.body", "body": body})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]})  # fmt: skip
        chunks = [self.chunk({"index": 0, "delta": delta, "finish_reason": None}) for delta in DELTAS]
        if self.fails:
            chunks = [*chunks[:5], {"error": {"message": "the engine died", "code": 500}}]
        else:
            chunks.append(
                self.chunk({"index": 0, "delta": {}, "finish_reason": self.finish_reason, "stop_reason": None})
            )
        text = (
            b": ping\n\n"
            + b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks)
            + b"data: [DONE]\n\n"
        )
        for at in range(0, len(text), 50):  # wherever it is cut
            await send({"type": "http.response.body", "body": text[at : at + 50], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def chunk(self, choice: Any) -> dict[str, Any]:
        return {"id": "x", "model": "r", "choices": [choice], "usage": USAGE}


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def guard(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: Inner) -> Callable[..., Guard]:
    def make(key: str = "") -> Guard:
        Rules(str(tiny_model), [], 512, 8, 2**16, 2, True, True, 32, True, max_model_len=64).write(
            tmp_path / "rules.json"
        )
        for name, value in ((protocol.RULES, str(tmp_path / "rules.json")), (protocol.OPEN, str(tmp_path / "open")),
                            (protocol.SECRET, "s" * 43), (protocol.KEY, key)):  # fmt: skip
            monkeypatch.setenv(name, value)
        (tmp_path / "open").touch()
        return Guard(inner)

    return make


def ask(guard: Guard, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"content_type": "application/json"} | headers
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    asyncio.run(guard({"type": "http", "method": "POST", "path": path, "headers": pairs}, receive, send))
    text = b"".join(message.get("body", b"") for message in sent[1:])
    length = dict(sent[0]["headers"]).get(b"content-length")
    assert length is None or int(length) == len(text)
    return sent[0]["status"], text


def events(text: bytes) -> Iterator[tuple[str, Any]]:
    for block in text.decode().split("\n\n")[:-1]:
        first, second = block.split("\n")
        data = json.loads(second.removeprefix("data: "))
        assert data["type"] == first.removeprefix("event: ")
        yield data["type"], data


# (route, what is sent, the messages of the chat that it must become)
CONVERSATIONS: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    (RESPONSES, {"input": "你是谁？"}, [USER]),
    (RESPONSES, {"input": "你是谁？", "instructions": "Be kind."}, [SYSTEM, USER]),
    (RESPONSES, {"input": [{"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
                           {"type": "message", "role": "user", "content": "你是谁？"}]}, [SYSTEM, USER]),
    (RESPONSES, {"input": [USER,
                           {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hmm."}]},
                           {"type": "message", "id": "m", "role": "assistant", "status": "completed",
                            "content": [{"type": "output_text", "text": "I am", "annotations": [], "logprobs": []}]},
                           {"type": "function_call", "id": "f", "call_id": "c1", "name": "look", "arguments": '{"at": "it"}'},
                           {"type": "function_call_output", "call_id": "c1", "output": "seen"},
                           {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "…"},
                           {"role": "assistant", "content": "Well."}, USER]},
     [USER, {"role": "assistant", "reasoning": "Hmm.", "content": "I am", "tool_calls": [CALL]},
      {"role": "tool", "tool_call_id": "c1", "content": "seen"}, {"role": "assistant", "content": "Well."}, USER]),
    (MESSAGES, {"messages": [USER]}, [USER]),
    (MESSAGES, {"system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
                "messages": [{"role": "user", "content": [{"type": "text", "text": "你是谁？"}]}]}, [SYSTEM, USER]),
    (MESSAGES, {"messages": [USER, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "Hmm.", "signature": ""}, {"type": "redacted_thinking", "data": "…"},
        {"type": "text", "text": "I am"}, {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "it"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "seen"}]},
                                     {"type": "text", "text": "你是谁？"}]}]},
     [USER, {"role": "assistant", "reasoning": "Hmm.", "content": "I am", "tool_calls": [CALL]},
      {"role": "tool", "tool_call_id": "c1", "content": "seen"}, USER]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "messages"), CONVERSATIONS)
def test_a_conversation_becomes_the_chat_that_it_is(
    guard: Any, inner: Inner, path: str, body: dict[str, Any], messages: Any
) -> None:
    status, text = ask(guard(), path, {"model": "r", "max_tokens": 9, **body} if path == MESSAGES else body)
    assert status == 200, text
    assert inner.path == "/v1/chat/completions" and inner.body["messages"] == messages


def test_what_changes_decoding_arrives_and_what_changes_nothing_does_not(guard: Any, inner: Inner) -> None:
    ask(guard(), RESPONSES, {
        "model": "r", "input": "a", "temperature": 0.3, "top_p": 0.9, "max_output_tokens": 5, "stream": True, "user": "u",
        "metadata": {"a": "b"}, "store": False, "truncation": "disabled", "previous_response_id": None, "include": [],
        "tools": [{"type": "function", **TOOL, "strict": True}], "tool_choice": {"type": "function", "name": "look"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
    })  # fmt: skip
    assert inner.body == {
        "model": "r", "messages": [{"role": "user", "content": "a"}], "temperature": 0.3, "top_p": 0.9,
        "max_completion_tokens": 5, "stream": True, "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": TOOL}], "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    }  # fmt: skip
    ask(guard(), MESSAGES, {
        "model": "r", "messages": [USER], "max_tokens": 5, "temperature": 0.3, "top_k": 4, "stop_sequences": ["x"],
        "metadata": {"user_id": "u"}, "tool_choice": {"type": "any"}, "thinking": {"type": "disabled"},
        "tools": [{"name": "look", "description": "Looks.", "input_schema": TOOL["parameters"], "cache_control": {}}],
    })  # fmt: skip
    assert inner.body == {
        "model": "r", "messages": [USER], "max_tokens": 5, "temperature": 0.3, "top_k": 4, "stop": ["x"],
        "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required",
    }  # fmt: skip


def test_answers_are_read_by_the_sdk(guard: Any, inner: Inner) -> None:
    from openai.types.responses import Response

    response = Response.model_validate_json(ask(guard(), RESPONSES, {"model": "r", "input": "a"})[1])
    kinds = [item.type for item in response.output]
    assert kinds == ["reasoning", "message", "function_call"] and response.output_text == "I am a model"
    assert response.status == "completed" and response.usage and response.usage.total_tokens == 10
    inner.finish_reason = "length"
    response = Response.model_validate_json(ask(guard(), RESPONSES, {"model": "r", "input": "a"})[1])
    assert response.status == "incomplete" and response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    inner.finish_reason = "tool_calls"
    message = json.loads(ask(guard(), MESSAGES, {"model": "r", "messages": [USER], "max_tokens": 9})[1])
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["content"][2]["input"] == {"at": "it"} and message["stop_reason"] == "tool_use"
    assert message["usage"] == {"input_tokens": 7, "output_tokens": 3}


def test_a_stream_of_responses_is_what_the_sdk_reads(guard: Any, inner: Inner) -> None:
    from openai._models import construct_type
    from openai.types.responses import ResponseStreamEvent

    _, text = ask(guard(), RESPONSES, {"model": "r", "input": "a", "stream": True})
    seen = list(events(text))
    assert [data["sequence_number"] for _, data in seen] == list(range(len(seen)))
    for kind, data in seen:
        event: Any = construct_type(type_=ResponseStreamEvent, value=data)
        assert event.type == kind and type(event).model_validate(data)
    names = [kind.removeprefix("response.") for kind, _ in seen]
    assert names == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    response = seen[-1][1]["response"]
    assert response["model"] == "r"
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call"]
    assert response["output"][1]["content"][0]["text"] == "I am a model" and response["usage"]["input_tokens"] == 7
    assert response["output"][2]["arguments"] == '{"at": "it"}' and response["output"][2]["call_id"] == "c1"
    inner.finish_reason = "length"
    assert list(events(ask(guard(), RESPONSES, {"input": "a", "stream": True})[1]))[-1][0] == "response.incomplete"
    inner.fails = True
    kind, data = list(events(ask(guard(), RESPONSES, {"input": "a", "stream": True})[1]))[-1]
    assert kind == "response.failed" and data["response"]["error"]["message"] == "the engine died"


def test_a_stream_of_messages(guard: Any, inner: Inner) -> None:
    body = {"model": "r", "messages": [USER], "max_tokens": 9, "stream": True}
    seen = list(events(ask(guard(), MESSAGES, body)[1]))
    assert [kind for kind, _ in seen] == [
        "message_start",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert seen[0][1]["message"]["usage"]["input_tokens"] == 7
    starts = [data for kind, data in seen if kind == "content_block_start"]
    assert [(data["index"], data["content_block"]["type"]) for data in starts] == [
        (0, "thinking"),
        (1, "text"),
        (2, "tool_use"),
    ]
    deltas = [data["delta"] for kind, data in seen if kind == "content_block_delta"]
    assert "".join(delta.get("partial_json", "") for delta in deltas) == '{"at": "it"}'
    assert "".join(delta.get("text", "") for delta in deltas) == "I am a model"
    assert seen[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    inner.fails = True
    kind, data = list(events(ask(guard(), MESSAGES, body)[1]))[-1]
    assert kind == "error" and data["error"]["message"] == "the engine died"


def test_tokens_are_counted_by_the_route_that_renders_prompts(guard: Any, inner: Inner) -> None:
    body = {"model": "r", "messages": [USER], "system": "Be kind."}
    assert json.loads(ask(guard(), f"{MESSAGES}/count_tokens", body)[1]) == {"input_tokens": 7}
    assert (inner.path, inner.body) == ("/tokenize", {"model": "r", "messages": [SYSTEM, USER]})
    assert ask(guard(), f"{MESSAGES}/count_tokens", body | {"system": "<|im_end|>"})[0] == 400
    unset = body | {"max_tokens": None, "tools": [{"type": None, "name": "look", "input_schema": {}}]}
    assert ask(guard(), f"{MESSAGES}/count_tokens", unset)[0] == 200
    full = guard()
    full.running = full.rules.max_requests
    assert ask(full, f"{MESSAGES}/count_tokens", body)[0] == 429


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (RESPONSES, {"input": "<|im_end|>"}, "control token"),
    (RESPONSES, {"input": "a", "instructions": "<|im_start|>"}, "control token"),
    (RESPONSES, {"input": [{"role": "assistant", "content": [{"type": "output_text", "text": "<|im_end|>"}]}]}, "control token"),
    (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": "<|im_end|>"}]}, "control token"),
    (RESPONSES, {"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "<|im_end|>"}]},
                           {"role": "assistant", "content": "a"}]}, "control token"),
    (RESPONSES, {"input": "a", "tools": [{"type": "function", "name": "<|im_end|>", "parameters": {}}]}, "control token"),
    (RESPONSES, {"input": "a", "store": True}, "nothing is stored here"),
    (RESPONSES, {"input": "a", "previous_response_id": "resp_1"}, "nothing is stored here"),
    (RESPONSES, {"input": "a", "conversation": "conv_1"}, "nothing is stored here"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "m"}]}, "nothing is stored here"),
    (RESPONSES, {"input": "a", "background": True}, "background"),
    (RESPONSES, {"input": "a", "truncation": "auto"}, "no prompt is cut"),
    (RESPONSES, {"input": "a", "tools": [{"type": "web_search"}]}, "only functions"),
    (RESPONSES, {"input": "a", "messages": [USER]}, "'messages' is not taken"),
    (RESPONSES, {"input": "a", "chat_template_kwargs": {"messages": []}}, "would change the prompt"),
    (RESPONSES, {"input": "a", "n": 100}, "'n' is not taken"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "text only"),
    (RESPONSES, {"input": [{"type": "computer_call"}]}, "computer_call"),
    (RESPONSES, {"input": 3}, "list of objects"),
    (RESPONSES, {"input": "a", "reasoning": "high"}, "reasoning is 'high'"),
    (RESPONSES, {}, "list of objects"),
    (MESSAGES, {"messages": [{"role": "user", "content": "<|im_end|>"}]}, "control token"),
    (MESSAGES, {"messages": [USER], "system": "<|im_start|>"}, "control token"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "<|im_end|>"}]}]}, "control token"),
    (MESSAGES, {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "n", "input": {"a": "<|im_end|>"}}]}, USER]}, "control token"),
    (MESSAGES, {"messages": [USER, {"role": "assistant", "content": "I"}]}, "the last message is the assistant's"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "text only"),
    (MESSAGES, {"messages": [USER], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "only tools of the client"),
    (MESSAGES, {"messages": [USER], "max_tokens": None}, "max_tokens"),
    (MESSAGES, {"messages": [USER], "tool_choice": "none"}, "tool_choice is 'none'"),
    (MESSAGES, {"messages": [USER], "mcp_servers": []}, "'mcp_servers' is not taken"),
    (MESSAGES, {"messages": [USER], "thread": {"type": "create"}}, "nothing is stored here"),
    (MESSAGES, {"messages": [USER], "container": "c"}, "runs no code"),
    (MESSAGES, {"messages": [USER], "output_config": "high"}, "output_config: 'high'"),
    (MESSAGES, {"messages": [USER], "output_config": {"format": {"type": "xml"}}}, "only json_schema"),
    (MESSAGES, {"messages": [{"role": "<|im_end|>", "content": "a"}, USER]}, "control token"),
    (MESSAGES, {"messages": [{"role": "system\nsay", "content": "a"}, USER]}, "is not known here"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "reason"), REFUSED)
def test_the_rules_of_chats_hold(guard: Any, inner: Inner, path: str, body: dict[str, Any], reason: str) -> None:
    status, text = ask(guard(), path, {"model": "r", "max_tokens": 9, **body} if path == MESSAGES else body)
    assert status == 400 and reason in json.loads(text)["error"]["message"], text
    assert inner.path == ""


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_odd_values_end_in_a_refusal_or_pass_as_they_are(guard: Any, inner: Inner, path: str) -> None:
    odd: list[Any] = [
        None,
        3,
        "x",
        [],
        {},
        [3],
        [None],
        [[]],
        {"type": []},
        [{"type": {}}],
        [{"role": [], "content": [3]}],
    ]
    names = ("input", "instructions", "tools", "tool_choice", "text", "reasoning", "include", "messages", "system",
             "stop_sequences", "thinking", "stop", "stream", "max_tokens", "max_output_tokens")  # fmt: skip
    one = guard()
    for name in names:
        for value in odd:
            body = (
                {"model": "r", "input": "a"}
                if path == RESPONSES
                else {"model": "r", "max_tokens": 9, "messages": [USER]}
            )
            assert ask(one, path, body | {name: value})[0] in (200, 400), (name, value)
    assert ask(one, path, [])[0] == 400


def test_the_key_comes_as_either_protocol_sends_it(guard: Any, inner: Inner) -> None:
    locked = guard(key="k" * 20)
    body = {"model": "r", "messages": [USER], "max_tokens": 9}
    assert ask(locked, MESSAGES, body)[0] == ask(locked, MESSAGES, body, x_api_key="wrong")[0] == 401
    for header in ({"x_api_key": "k" * 20}, {"authorization": "Bearer " + "k" * 20}):
        assert ask(locked, MESSAGES, body, **header)[0] == 200
        assert inner.headers[b"authorization"] == b"Bearer " + b"k" * 20  # where vLLM looks for it
        assert ask(locked, RESPONSES, {"input": "a"}, **header)[0] == 200
        assert inner.headers[b"authorization"] == b"Bearer " + b"k" * 20 and b"x-api-key" not in inner.headers
    for scheme in ("Basic ", "Token ", "Bearer", "k ", ""):
        assert ask(locked, MESSAGES, body, authorization=scheme + "k" * 20)[0] == 401
    both = {"authorization": "Bearer " + "k" * 20, "x_api_key": "k" * 20}
    assert ask(locked, MESSAGES, body, **both)[0] == 200
    for other in ({"x_api_key": "wrong"}, {"authorization": "Bearer wrong"}, {"authorization": "Basic " + "k" * 20}):
        status, text = ask(locked, MESSAGES, body, **both | other)
        assert status == 401 and "different keys" in json.loads(text)["error"]["message"]


def test_each_field_of_anthropics_sdk_is_decided_once() -> None:
    from anthropic.types import message_count_tokens_params as of_count
    from anthropic.types import message_create_params as of_messages
    from anthropic.types.beta import message_create_params as of_beta

    decided = (messages_route.SAME, messages_route.LEFT_OUT, messages_route.READ, set(messages_route.REFUSED))
    fields = {*of_messages.MessageCreateParamsBase.__annotations__, *of_beta.MessageCreateParamsBase.__annotations__}
    fields |= {*of_count.MessageCountTokensParams.__annotations__, "top_k", "top_p", "temperature", "stream"}
    assert len(fields) > 25
    for name in fields:
        assert sum(name in names for names in decided) == 1, f"{name}: take it, leave it out, or say why not"


def test_what_claude_code_sends_changes_neither_prompt_nor_decoding(guard: Any, inner: Inner) -> None:
    plain = {"model": "r", "messages": [USER], "max_tokens": 9}
    assert ask(guard(), MESSAGES, plain)[0] == 200
    chat = inner.body
    more = {
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, "speed": "fast",
        "output_config": {"effort": "high"}, "metadata": {"user_id": "<|im_end|>"}, "betas": ["a"],
        "diagnostics": {"previous_message_id": None}, "thinking": {"type": "adaptive", "display": "summarized"},
    }  # fmt: skip
    status, text = ask(guard(), MESSAGES, plain | more)
    assert status == 200 and inner.body == chat, text
    assert ask(guard(), f"{MESSAGES}/count_tokens", plain | more)[0] == 200
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert (
        ask(guard(), MESSAGES, plain | {"output_config": {"format": {"type": "json_schema", "schema": schema}}})[0]
        == 200
    )
    assert inner.body["response_format"]["json_schema"]["schema"] == schema


def of_anthropics_sdk(guard: Guard, key: str) -> Any:
    """The SDK itself, in front of the guard."""
    import anthropic
    import httpx2

    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(guard))
    return anthropic.AsyncAnthropic(base_url="http://localhost", api_key=key, http_client=http, max_retries=0)


def test_the_sdk_lists_models_and_raises_its_own_exceptions(guard: Any, tmp_path: Path) -> None:
    import anthropic

    locked = guard(key="k" * 20)

    async def models(scope: Any, receive: Any, send: Any) -> None:
        assert dict(scope["headers"])[b"authorization"] == b"Bearer " + b"k" * 20
        cards = [{"id": name, "created": 1700000000, "max_model_len": 64} for name in ("r", "r-base")]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"object": "list", "data": cards}).encode()})

    async def walk() -> None:
        client = of_anthropics_sdk(locked, "k" * 20)
        locked.app = models
        listed = [model async for model in client.models.list()]
        assert [model.id for model in listed] == ["r", "r-base"] and listed[0].created_at.year == 2023
        assert type(listed[0]).model_validate(listed[0].model_dump()).max_input_tokens == 64
        assert (await client.models.retrieve("r")).display_name == "r"
        request = {"model": "r", "messages": [USER], "max_tokens": 9}

        async def raised(kind: Any, what: str, asked: Any) -> None:
            with pytest.raises(kind) as caught:
                await asked
            error = caught.value.body["error"]
            assert caught.value.body["type"] == "error" and error["type"] == what and error["message"]

        await raised(anthropic.NotFoundError, "not_found_error", client.models.retrieve("x"))
        await raised(anthropic.NotFoundError, "not_found_error", client.messages.batches.list())
        bad = request | {"messages": [{"role": "user", "content": "<|im_end|>"}]}
        await raised(anthropic.BadRequestError, "invalid_request_error", client.messages.create(**bad))
        count = {"model": "r", "messages": bad["messages"]}
        await raised(anthropic.BadRequestError, "invalid_request_error", client.messages.count_tokens(**count))
        large = request | {"messages": [{"role": "user", "content": "a" * 2**17}]}
        await raised(anthropic.RequestTooLargeError, "request_too_large", client.messages.create(**large))
        stranger = of_anthropics_sdk(locked, "wrong").messages.create(**request)
        await raised(anthropic.AuthenticationError, "authentication_error", stranger)
        locked.running = locked.rules.max_requests
        await raised(anthropic.RateLimitError, "rate_limit_error", client.messages.create(**request))
        (tmp_path / "open").unlink()
        await raised(anthropic.ServiceUnavailableError, "overloaded_error", client.messages.create(**request))

    asyncio.run(walk())


def test_openais_sdk_raises_its_own_exceptions(guard: Any) -> None:
    import httpx2
    import openai

    locked = guard(key="k" * 20)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(locked))

    async def walk() -> None:
        address = {"base_url": "http://localhost/v1", "http_client": http, "max_retries": 0}
        client = openai.AsyncOpenAI(api_key="k" * 20, **address)
        with pytest.raises(openai.BadRequestError, match="control token"):
            await client.responses.create(model="r", input="<|im_end|>")
        with pytest.raises(openai.AuthenticationError):
            await openai.AsyncOpenAI(api_key="wrong", **address).responses.create(model="r", input="a")
        with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
            await client.responses.create(model="r", input="x1" * 2**14)
        assert caught.value.code == "context_length_exceeded" and caught.value.type == "invalid_request_error"

    asyncio.run(walk())


def test_errors_of_the_chat_route_keep_their_status(guard: Any, inner: Inner) -> None:
    inner.fails = True
    for path, body in ((RESPONSES, {"input": "a"}), (MESSAGES, {"model": "x", "messages": [USER], "max_tokens": 9})):
        status, text = ask(guard(), path, body)
        assert status == 404 and json.loads(text)["error"]["message"] == "no such model"
