"""Thoughts in answers of the chat route under both of their names.

vLLM 0.32 calls a thought `reasoning`; most clients that know thoughts look for `reasoning_content`, its older name.
"""

import json
from collections.abc import MutableMapping
from typing import Any

from lockstep.serving.answers import Send

NAME, OLDER = "reasoning", "reasoning_content"
MARK = f'"{NAME}":'.encode()
STREAM = b"text/event-stream"


class BothNames:
    """Stands between the chat route and a client. Answers without thoughts pass as they are."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.start: MutableMapping[str, Any] = {}
        self.body = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Send a message of ASGI on: pieces of a stream at once, whole answers when they are whole."""
        if message["type"] == "http.response.start":
            self.start = message
            if self._streams:
                await self.send(message)
        elif self._streams:
            await self.send({**message, "body": _of_events(message.get("body", b""))})
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_whole()

    @property
    def _streams(self) -> bool:
        kind: bytes = dict(self.start["headers"]).get(b"content-type", b"")
        return kind.startswith(STREAM)

    async def _send_whole(self) -> None:
        body = _of_json(self.body)
        headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _of_events(piece: bytes) -> bytes:
    """A piece of a stream, which vLLM sends as whole events."""
    if MARK not in piece or not piece.endswith(b"\n\n"):
        return piece
    return b"\n\n".join(
        b"data: " + _of_json(event.removeprefix(b"data: ")) if event.startswith(b"data: {") else event
        for event in piece.split(b"\n\n")
    )


def _of_json(text: bytes) -> bytes:
    """An answer or a chunk with the older name beside the new one, wherever it holds a thought."""
    if MARK not in text:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    held = False
    for choice in value.get("choices") or () if isinstance(value, dict) else ():
        for part in (choice.get("message"), choice.get("delta")):
            if part and part.get(NAME) and OLDER not in part:
                part[OLDER] = part[NAME]
                held = True
    return json.dumps(value, ensure_ascii=False).encode() if held else text
