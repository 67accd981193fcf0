"""Anthropic's Messages (`POST /v1/messages`), the protocol of Claude's clients, as chats; see `translation`.

https://docs.claude.com/en/api/messages describes requests and answers, /en/docs/build-with-claude/streaming the events.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any

from lockstep.serving import anthropic_forms
from lockstep.serving.answers import Refusal
from lockstep.serving.request_fields import CHAT, TOKENIZE
from lockstep.serving.translation import Event

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
SAME = {"model", "max_tokens", "temperature", "top_p", "top_k", "stream", "thinking"}
# Change neither prompt nor decoding here. `context_management` asks the service to leave old results of tools and
# thoughts out of a conversation that grows too long; the whole of it is read here.
LEFT_OUT = {
    "metadata", "service_tier", "cache_control", "context_management", "diagnostics", "inference_geo", "speed", "betas",
    "billing_policy", "fallbacks", "fallback_credit_token", "user_profile_id", "workspace_id",
}  # fmt: skip
READ = {"messages", "system", "stop_sequences", "tools", "tool_choice", "output_config"}
REFUSED = {
    "compaction": "this server sums no conversations up",
    "container": "this server runs no code",
    "mcp_servers": "this server calls no tools by itself",
    "thread": "nothing is stored here, send the whole conversation each time",
}
CHOICES = {"auto": "auto", "none": "none", "any": "required"}
STOPS = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessagesTranslation:
    """A request of this protocol, and its answer.

    Args:
        body: as it came; parsed JSON.

    Raises:
        Refusal: it asks for what is not given here.
    """

    route = CHAT

    def __init__(self, body: dict[str, Any]) -> None:
        given = {name: value for name, value in body.items() if value is not None}
        if unknown := sorted(given.keys() - SAME - LEFT_OUT - READ):
            reason = f": {REFUSED[unknown[0]]}" if unknown[0] in REFUSED else ""
            raise Refusal(400, f"the field {unknown[0]!r} is not taken here{reason}")
        if "max_tokens" not in given:
            raise Refusal(400, "max_tokens is missing: this protocol asks for it")
        self.chat: dict[str, Any] = {name: given[name] for name in SAME & given.keys()}
        if isinstance(self.chat.get("thinking"), dict):  # a budget changes nothing where thinking is as in training
            self.chat["thinking"] = {"type": self.chat["thinking"].get("type")}
            if self.chat["thinking"]["type"] == "adaptive":  # the model decides
                del self.chat["thinking"]
        self.chat["messages"] = _messages(given)
        if "stop_sequences" in given:
            self.chat["stop"] = given["stop_sequences"]
        if tools := given.get("tools"):
            self.chat["tools"] = [_tool(tool) for tool in _list(tools, "tools")]
        if "tool_choice" in given:
            self._take_choice(given["tool_choice"])
        if response_format := _response_format(given.get("output_config", {})):
            self.chat["response_format"] = response_format
        if given.get("stream"):
            self.chat["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        self.id = f"msg_{uuid.uuid4().hex}"
        self.stream = _Stream(self)

    def _take_choice(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            raise Refusal(400, f'tool_choice is {choice!r:.40}, and must be an object such as {{"type": "auto"}}')
        kind = choice.get("type")
        if kind == "tool":
            self.chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
        elif isinstance(kind, str) and kind in CHOICES:
            self.chat["tool_choice"] = CHOICES[kind]
        else:
            raise Refusal(400, f"tool_choice: the type {kind!r:.40} is not known here")
        if choice.get("disable_parallel_tool_use"):
            self.chat["parallel_tool_calls"] = False

    def answer(self, chat: dict[str, Any]) -> dict[str, Any]:
        choice = chat["choices"][0]
        message = choice["message"]
        blocks: list[dict[str, Any]] = []
        if thoughts := message.get("reasoning") or message.get("reasoning_content"):
            blocks.append({"type": "thinking", "thinking": thoughts, "signature": ""})
        if message.get("content"):
            blocks.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls") or ():
            blocks.append(_use(call["id"], call["function"]["name"], _input(call["function"]["arguments"])))
        usage = chat["usage"]
        return self.message(chat["model"], blocks, usage["prompt_tokens"], usage["completion_tokens"]) | _end_of(
            choice, any(block["type"] == "tool_use" for block in blocks)
        )

    def error(self, chat: dict[str, Any]) -> dict[str, Any]:
        error = chat.get("error", {})
        code = error.get("code")
        return anthropic_forms.error(code if isinstance(code, int) else 500, str(error.get("message", "")))

    def events(self, chunk: dict[str, Any]) -> Iterator[Event]:
        yield from self.stream.events(chunk)

    def end(self) -> Iterator[Event]:
        yield from self.stream.end()

    def message(self, model: str, blocks: list[dict[str, Any]], prompt: int, answer: int) -> dict[str, Any]:
        """The answer as an object, without what is known of its end.

        Args:
            prompt, answer: tokens.
        """
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": model, "content": blocks,
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": prompt, "output_tokens": answer},
        }  # fmt: skip


class CountTranslation(MessagesTranslation):
    """A question how many tokens a request has: those of the prompt that the chat would get."""

    route = TOKENIZE

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__({**body, "max_tokens": 1})
        kept = ("model", "messages", "tools", "thinking")
        self.chat = {name: self.chat[name] for name in kept if name in self.chat}

    def answer(self, chat: dict[str, Any]) -> dict[str, Any]:
        return {"input_tokens": chat["count"]}


class _Stream:
    """The events of a streamed answer: each block is opened, grows, and is closed."""

    def __init__(self, translation: MessagesTranslation) -> None:
        self.translation = translation
        self.began = self.failed = self.has_calls = False
        self.block, self.kind, self.call = -1, "", -1
        self.last: dict[str, Any] = {}
        self.usage: dict[str, Any] = {}

    def events(self, chunk: dict[str, Any]) -> Iterator[Event]:
        if "error" in chunk:
            self.failed = True
            yield "error", self.translation.error(chunk)
            return
        self.usage = chunk.get("usage") or self.usage
        if not self.began:
            self.began = True
            message = self.translation.message(chunk.get("model", ""), [], self.usage.get("prompt_tokens", 0), 0)
            yield "message_start", {"type": "message_start", "message": message}
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta", {})
            if thoughts := delta.get("reasoning") or delta.get("reasoning_content"):
                start = {"type": "thinking", "thinking": "", "signature": ""}
                yield from self._grow(start, {"type": "thinking_delta", "thinking": thoughts})
            if text := delta.get("content"):
                yield from self._grow({"type": "text", "text": ""}, {"type": "text_delta", "text": text})
            for call in delta.get("tool_calls") or ():
                yield from self._grow_call(call)
            if choice.get("finish_reason"):
                self.last = choice

    def end(self) -> Iterator[Event]:
        if self.failed:
            return
        yield from self._close()
        tokens = {"output_tokens": self.usage.get("completion_tokens", 0)}
        tokens |= {"input_tokens": self.usage.get("prompt_tokens", 0)}
        yield (
            "message_delta",
            {"type": "message_delta", "delta": _end_of(self.last, self.has_calls), "usage": tokens},
        )
        yield "message_stop", {"type": "message_stop"}

    def _grow(self, start: dict[str, Any], delta: dict[str, Any]) -> Iterator[Event]:
        """Add to the block that is open; opens one if it is of another kind."""
        if self.kind != start["type"]:
            yield from self._open(start)
        yield "content_block_delta", {"type": "content_block_delta", "index": self.block, "delta": delta}

    def _grow_call(self, call: dict[str, Any]) -> Iterator[Event]:
        function = call.get("function") or {}
        if self.kind != "tool_use" or call.get("index", 0) != self.call:
            self.call, self.has_calls = call.get("index", 0), True
            yield from self._open(_use(call.get("id") or "", function.get("name") or "", {}))
        if arguments := function.get("arguments"):
            delta = {"type": "input_json_delta", "partial_json": arguments}
            yield "content_block_delta", {"type": "content_block_delta", "index": self.block, "delta": delta}

    def _open(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self.block, self.kind = self.block + 1, block["type"]
        yield "content_block_start", {"type": "content_block_start", "index": self.block, "content_block": block}

    def _close(self) -> Iterator[Event]:
        if self.kind:
            self.kind = ""
            yield "content_block_stop", {"type": "content_block_stop", "index": self.block}


def _end_of(choice: dict[str, Any], has_calls: bool) -> dict[str, Any]:
    """Why an answer ended, by what the chat route says of it."""
    reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if reason == "stop" and isinstance(stop, str):  # a token's id is the model's own end
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    ended = "tool_use" if has_calls and reason == "stop" else STOPS.get(reason or "", "end_turn")
    return {"stop_reason": ended, "stop_sequence": None}


def _messages(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a request as messages of a chat. Raises Refusal."""
    messages: list[dict[str, Any]] = []
    if system := given.get("system"):
        messages.append({"role": "system", "content": system})
    for message in _list(given.get("messages"), "messages"):
        content = message.get("content")
        if not isinstance(content, list):
            messages.append({"role": message.get("role"), "content": content})
        elif message.get("role") == "assistant":
            messages.append(_turn(_list(content, "content")))
        else:
            results = [block for block in _list(content, "content") if block.get("type") == "tool_result"]
            for block in results:
                call = {"role": "tool", "tool_call_id": block.get("tool_use_id")}
                messages.append({**call, "content": block.get("content") or ""})
            if rest := [block for block in content if block.get("type") != "tool_result"]:
                messages.append({"role": message.get("role"), "content": rest})
    if messages and messages[-1]["role"] == "assistant":  # the template would end that turn and open another one
        raise Refusal(
            400, "the last message is the assistant's: the beginning of an answer is not taken here, leave it out"
        )
    return messages


def _turn(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """An answer of the assistant: its thoughts, words and calls."""
    turn: dict[str, Any] = {"role": "assistant"}
    if thoughts := [str(block.get("thinking") or "") for block in blocks if block.get("type") == "thinking"]:
        turn["reasoning_content"] = "".join(thoughts)
    calls = [block for block in blocks if block.get("type") == "tool_use"]
    apart = ("thinking", "redacted_thinking", "tool_use")
    if (words := [block for block in blocks if block.get("type") not in apart]) or not calls:
        turn["content"] = words
    if calls:
        turn["tool_calls"] = [
            {"id": block.get("id"), "type": "function",
             "function": {"name": block.get("name"), "arguments": json.dumps(block.get("input"), ensure_ascii=False)}}
            for block in calls
        ]  # fmt: skip
    return turn


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as a chat request has it. Raises Refusal for what Anthropic's own service would run."""
    if (tool.get("type") or "custom") != "custom":
        raise Refusal(400, f"tools: the type {tool['type']!r:.40} is not taken here, only tools of the client")
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
    }
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _response_format(config: Any) -> dict[str, Any] | None:
    """`response_format` of a chat request. Raises Refusal.

    Effort and budget change nothing, as thinking is that of training.
    """
    if not isinstance(config, dict) or (unknown := sorted(config.keys() - {"effort", "format", "task_budget"})):
        what = unknown if isinstance(config, dict) else config
        raise Refusal(400, f"output_config: {what!r:.40} is not taken here, only effort, format and task_budget")
    if (chosen := config.get("format")) is None:
        return None
    if not isinstance(chosen, dict) or chosen.get("type") != "json_schema":
        raise Refusal(400, f"output_config: the format {chosen!r:.60} is not taken here, only json_schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": chosen.get("schema")}}


def _use(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments; an empty object where a model wrote none that can be read."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _list(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise Refusal(400, f"{name} must be a list of objects")
    return value
