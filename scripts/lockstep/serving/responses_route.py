"""OpenAI's Responses (`POST /v1/responses`), the default of its newer clients, as chats; see `translation`.

https://platform.openai.com/docs/api-reference/responses describes requests, answers and the events of a stream.
Nothing is stored here: each request brings its whole conversation.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from lockstep.serving.answers import Refusal
from lockstep.serving.request_fields import CHAT
from lockstep.serving.responses_stream import ResponsesStream, call_item, message_item, reasoning_item
from lockstep.serving.translation import Event

RESPONSES = "/v1/responses"
# Fields that a chat request takes under the same name.
SAME = {
    "model", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "logit_bias",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "stream", "parallel_tool_calls",
    "structured_outputs", "chat_template_kwargs",
}  # fmt: skip
# Fields that change neither prompt nor decoding.
LEFT_OUT = {
    "metadata", "user", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier",
    "stream_options",
}  # fmt: skip
# Fields that are taken with these values only, where nothing is asked of them, and why not with others.
ONLY_AS: dict[str, tuple[tuple[Any, ...], str]] = {
    "store": ((False,), "nothing is stored here: send store false, and the whole conversation each time"),
    "previous_response_id": ((), "nothing is stored here: send the whole conversation as input each time"),
    "conversation": ((), "nothing is stored here: send the whole conversation as input each time"),
    "background": ((False,), "answers are given at once here: leave background out"),
    "truncation": (("disabled",), "no prompt is cut here: shorten the conversation"),
    "prompt": ((), "no prompts are kept here: send instructions and input"),
    "max_tool_calls": ((), "this server calls no tools by itself"),
    "top_logprobs": ((0,), "log-probabilities are given by /v1/chat/completions"),
}
LOGPROBS = "message.output_text.logprobs"


class ResponsesTranslation:
    """A request of this protocol, and its answer.

    Args:
        body: as it came; parsed JSON.

    Raises:
        Refusal: it asks for what is not given here.
    """

    route = CHAT

    def __init__(self, body: dict[str, Any]) -> None:
        given = {name: value for name, value in body.items() if value is not None}
        for name, (values, reason) in ONLY_AS.items():
            if name in given and given[name] not in values:
                raise Refusal(400, f"{name}: {reason}")
        include = given.get("include", [])
        if isinstance(include, list) and LOGPROBS in include:
            raise Refusal(400, f"include: {ONLY_AS['top_logprobs'][1]}")
        read = {"input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "include"}
        if unknown := sorted(given.keys() - SAME - LEFT_OUT - ONLY_AS.keys() - read):
            raise Refusal(400, f"the field {unknown[0]!r} is not taken here")
        self.given = given
        self.chat = {name: given[name] for name in SAME & given.keys()} | {"messages": _messages(given)}
        if "max_output_tokens" in given:
            self.chat["max_completion_tokens"] = given["max_output_tokens"]
        if tools := given.get("tools"):
            self.chat["tools"] = [_tool(tool) for tool in _list(tools, "tools")]
        if "tool_choice" in given:
            self.chat["tool_choice"] = _tool_choice(given["tool_choice"])
        if response_format := _response_format(given.get("text")):
            self.chat["response_format"] = response_format
        reasoning = given.get("reasoning", {})
        if not isinstance(reasoning, dict):
            raise Refusal(400, f'reasoning is {reasoning!r:.40}, and must be an object such as {{"effort": "low"}}')
        if (effort := reasoning.get("effort")) is not None:
            self.chat["reasoning_effort"] = effort
        if given.get("stream"):
            self.chat["stream_options"] = {"include_usage": True}
        self.id, self.created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self.stream = ResponsesStream(self.response)

    def answer(self, chat: dict[str, Any]) -> dict[str, Any]:
        choice = chat["choices"][0]
        message = choice["message"]
        items = []
        if thoughts := message.get("reasoning") or message.get("reasoning_content"):
            items.append(reasoning_item(thoughts))
        if message.get("content") or not message.get("tool_calls"):
            items.append(message_item(message.get("content") or ""))
        items += [
            call_item(call["function"]["name"], call["function"]["arguments"], call["id"])
            for call in message.get("tool_calls") or ()
        ]
        return self.response(items, choice["finish_reason"], chat.get("usage"), chat["model"])

    def error(self, chat: dict[str, Any]) -> dict[str, Any]:
        return chat  # both protocols have one form of errors

    def events(self, chunk: dict[str, Any]) -> Iterator[Event]:
        yield from self.stream.events(chunk)

    def end(self) -> Iterator[Event]:
        yield from self.stream.end()

    def response(
        self, items: list[dict[str, Any]], finish_reason: str | None, usage: Any, model: str | None
    ) -> dict[str, Any]:
        """The answer as an object.

        Args:
            items: of its output.
            finish_reason: of the chat's answer; None while it is in progress.
            usage: of the chat's answer.
        """
        given = self.given
        incomplete = {"reason": "max_output_tokens"} if finish_reason == "length" else None
        status = "in_progress" if finish_reason is None else "incomplete" if incomplete else "completed"
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "background": False,
            "error": None, "incomplete_details": incomplete, "instructions": given.get("instructions"),
            "max_output_tokens": given.get("max_output_tokens"), "max_tool_calls": None,
            "model": model or given.get("model"), "output": items,
            "parallel_tool_calls": given.get("parallel_tool_calls", True), "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None}, "store": False, "temperature": given.get("temperature"),
            "text": given.get("text") or {"format": {"type": "text"}}, "tool_choice": given.get("tool_choice", "auto"),
            "tools": given.get("tools", []), "top_p": given.get("top_p"), "truncation": "disabled",
            "usage": _usage(usage), "user": given.get("user"), "metadata": given.get("metadata", {}),
        }  # fmt: skip


def _messages(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a request as messages of a chat. Raises Refusal."""
    messages: list[dict[str, Any]] = []
    if instructions := given.get("instructions"):
        messages.append({"role": "system", "content": instructions})
    items = given.get("input")
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    turn: dict[str, Any] | None = None  # of the assistant, whose thoughts, words and calls are items of their own
    for item in _list(items, "input"):
        kind = item.get("type", "message")
        if kind == "message" and item.get("role") != "assistant":
            turn = None
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call_output":
            turn = None
            output = item.get("output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        elif kind in ("message", "reasoning", "function_call"):
            turn = _add_to_turn(messages, turn, kind, item)
        elif kind == "item_reference":
            raise Refusal(400, "input: nothing is stored here, send the items themselves (AI SDK: openai.store false)")
        else:
            raise Refusal(400, f"input: items of the type {kind!r:.40} are not taken here")
    return messages


def _add_to_turn(
    messages: list[dict[str, Any]], turn: dict[str, Any] | None, kind: str, item: dict[str, Any]
) -> dict[str, Any] | None:
    """Add an item to the assistant's turn, or begin one; returns the turn."""
    thoughts = ""
    if kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        thoughts = "".join(str(part.get("text") or "") for part in _list(parts, "reasoning"))
        if not thoughts:  # as it comes from a model whose thoughts are kept secret
            return turn
    is_next = turn is None or (kind == "reasoning" and bool(turn.keys() - {"role"}))
    if turn is None or is_next or (kind == "message" and ("content" in turn or "tool_calls" in turn)):
        turn = {"role": "assistant"}
        messages.append(turn)
    if kind == "reasoning":
        turn["reasoning_content"] = thoughts
    elif kind == "message":
        turn["content"] = item.get("content")
    else:
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        turn.setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": function})
    return turn


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as a chat request has it. Raises Refusal for what this server would have to run."""
    if tool.get("type") != "function":
        raise Refusal(400, f"tools: the type {tool.get('type')!r:.40} is not taken here, only functions of the client")
    kept = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
    return {"type": "function", "function": kept}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _response_format(text: Any) -> dict[str, Any] | None:
    """`response_format` of a chat request; None where any text will do."""
    chosen = text.get("format") if isinstance(text, dict) else None
    if not isinstance(chosen, dict) or chosen.get("type") == "text":
        return None
    if chosen.get("type") != "json_schema":
        return chosen
    return {"type": "json_schema", "json_schema": {name: value for name, value in chosen.items() if name != "type"}}


def _list(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise Refusal(400, f"{name} must be a list of objects" + (", or a text" if name == "input" else ""))
    return value


def _usage(usage: Any) -> dict[str, Any] | None:
    if not usage:
        return None
    return {
        "input_tokens": usage["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens", 0), "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }  # fmt: skip
