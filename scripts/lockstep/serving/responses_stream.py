"""What a streamed answer of OpenAI's Responses consists of: items, and the events in which they come."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

from lockstep.serving.translation import Event

Respond = Callable[[list[dict[str, Any]], str | None, Any, str | None], dict[str, Any]]


class ResponsesStream:
    """The events of a streamed answer: each item of the output is opened, grows, and is closed.

    Args:
        respond: makes the answer's object of its output so far, the chat's finish_reason (None while it is in
            progress), its usage, and its model.
    """

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.model: str | None = None
        self.number = 0
        self.items: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None
        self.call = -1  # index of the call that is open
        self.finish_reason: str | None = None
        self.usage: Any = None
        self.failed = False

    def events(self, chunk: dict[str, Any]) -> Iterator[Event]:
        if self.number == 0:
            self.model = chunk.get("model")
            for name in ("response.created", "response.in_progress"):
                yield self._event(name, response=self.respond([], None, None, self.model))
        if "error" in chunk:
            self.failed = True
            error = {"code": "server_error", "message": str(chunk["error"].get("message", ""))}
            response = self.respond(self.items, None, None, self.model) | {"status": "failed", "error": error}
            yield self._event("response.failed", response=response)
            return
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta", {})
            if thoughts := delta.get("reasoning") or delta.get("reasoning_content"):
                yield from self._grow("reasoning", thoughts)
            if delta.get("content"):
                yield from self._grow("message", delta["content"])
            for call in delta.get("tool_calls") or ():
                yield from self._grow_call(call)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def end(self) -> Iterator[Event]:
        if self.failed:
            return
        if not self.items and not self.open:
            yield from self._begin(message_item("") | {"status": "in_progress", "content": []})
        yield from self._close()
        response = self.respond(self.items, self.finish_reason or "stop", self.usage, self.model)
        yield self._event(f"response.{response['status']}", response=response)

    def _event(self, kind: str, **data: Any) -> Event:
        self.number += 1
        return kind, {"type": kind, "sequence_number": self.number - 1, **data}

    def _grow(self, kind: str, text: str) -> Iterator[Event]:
        """Add text to the message, or to the thoughts, that are open; opens one if need be."""
        if not self.open or self.open["type"] != kind:
            yield from self._close()
            item = message_item("") if kind == "message" else reasoning_item("")
            yield from self._begin(item | {"status": "in_progress", "content": []})
        assert self.open is not None
        self.open["content"][0]["text"] += text
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        yield self._event(name, **self._place(), content_index=0, delta=text, **more)

    def _grow_call(self, call: dict[str, Any]) -> Iterator[Event]:
        function = call.get("function") or {}
        if not self.open or self.open["type"] != "function_call" or call.get("index", 0) != self.call:
            yield from self._close()
            self.call = call.get("index", 0)
            item = call_item(function.get("name") or "", "", call.get("id") or "")
            yield from self._begin(item | {"status": "in_progress"})
        assert self.open is not None
        if arguments := function.get("arguments"):
            self.open["arguments"] += arguments
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=arguments)

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        self.open = item
        yield self._event("response.output_item.added", output_index=len(self.items), item=_copy(item))
        if item["type"] == "function_call":
            return
        part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        if item["type"] == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"] = [part]
        yield self._event("response.content_part.added", **self._place(), content_index=0, part=dict(part))

    def _close(self) -> Iterator[Event]:
        if not (item := self.open):
            return
        place = self._place()
        if item["type"] == "function_call":
            arguments = item["arguments"]
            name = "response.function_call_arguments.done"
            yield self._event(name, **place, name=item["name"], arguments=arguments)
        else:
            (part,) = item["content"]
            more: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            name = "response.output_text.done" if item["type"] == "message" else "response.reasoning_text.done"
            yield self._event(name, **place, content_index=0, text=part["text"], **more)
            yield self._event("response.content_part.done", **place, content_index=0, part=dict(part))
        item["status"] = "completed"
        yield self._event("response.output_item.done", output_index=len(self.items), item=_copy(item))
        self.items.append(item)
        self.open = None

    def _place(self) -> dict[str, Any]:
        assert self.open is not None
        return {"item_id": self.open["id"], "output_index": len(self.items)}


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """An item as it is now."""
    parts = item.get("content")
    return {**item, "content": [dict(part) for part in parts]} if parts is not None else dict(item)


def message_item(text: str) -> dict[str, Any]:
    """A whole message as an item of the output."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    name = f"msg_{uuid.uuid4().hex}"
    return {"id": name, "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def reasoning_item(text: str) -> dict[str, Any]:
    """Whole thoughts as an item of the output."""
    part = {"type": "reasoning_text", "text": text}
    return {
        "id": f"rs_{uuid.uuid4().hex}", "type": "reasoning", "status": "completed", "summary": [], "content": [part],
    }  # fmt: skip


def call_item(name: str, arguments: str, call_id: str) -> dict[str, Any]:
    """A whole call of a function as an item of the output; its arguments are JSON text."""
    return {
        "id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": "completed", "call_id": call_id,
        "name": name, "arguments": arguments,
    }  # fmt: skip
