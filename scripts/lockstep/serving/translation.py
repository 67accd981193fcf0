"""Other protocols of chats, spoken in front of vLLM's chat route.

A request of another protocol becomes a chat request, which passes the same rules and is rendered by the route that the
gate has proved; the answer, or each piece of its stream, is translated back. vLLM has routes of its own for these
protocols. They render prompts in other code, and take fields that no rule of ours knows.
"""

import json
from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol

from lockstep.serving.answers import Send

Event = tuple[str, dict[str, Any]]  # its name, and its data
STREAM = b"text/event-stream"
DONE = "[DONE]"


class Translation(Protocol):
    """One request, and its answer.

    Attributes:
        route: of ours that answers it.
        chat: the body of the request to that route.
    """

    route: str
    chat: dict[str, Any]

    def answer(self, chat: dict[str, Any]) -> dict[str, Any]:
        """The whole answer, from that of the chat route."""

    def error(self, chat: dict[str, Any]) -> dict[str, Any]:
        """An answer with another status than 200, from that of the chat route."""

    def events(self, chunk: dict[str, Any]) -> Iterator[Event]:
        """What a chunk of the chat route's stream, or an error in it, becomes."""

    def end(self) -> Iterator[Event]:
        """What follows the last chunk."""


class TranslatedSend:
    """Stands between the chat route and a client.

    Args:
        translation: of this request.
        send: to the client.
    """

    def __init__(self, translation: Translation, send: Send) -> None:
        self.translation, self.send = translation, send
        self.start: MutableMapping[str, Any] = {}
        self.streams = False
        self.pending = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.streams = message["status"] == 200 and kind.startswith(STREAM)
            if self.streams:
                await self.send(message)
            return
        self.pending += message.get("body", b"")
        more = message.get("more_body", False)
        if self.streams:
            await self._send_events(more)
        elif not more:
            await self._send_whole()

    async def _send_whole(self) -> None:
        try:
            value = json.loads(self.pending)
        except ValueError:  # no answer of the chat route, such as uvicorn's own about an error inside
            value = {"error": {"message": self.pending.decode("utf-8", errors="replace")}}
        translate = self.translation.answer if self.start["status"] == 200 else self.translation.error
        body = json.dumps(translate(value), ensure_ascii=False).encode()
        headers = [(name, value) for name, value in self.start["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def _send_events(self, more: bool) -> None:
        *whole, self.pending = self.pending.split(b"\n\n")
        written: list[str] = []
        for block in whole:
            data = block.decode().removeprefix("data:").strip()
            if not block.startswith(b"data:"):  # a comment that keeps the connection alive
                continue
            events = self.translation.end() if data == DONE else self.translation.events(json.loads(data))
            written += [f"event: {name}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n" for name, value in events]
        if written or not more:
            body = "".join(written).encode()
            await self.send({"type": "http.response.body", "body": body, "more_body": more})
