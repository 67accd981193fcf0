"""Answers that are not vLLM's: refusals as OpenAI's or Anthropic's errors, and how a connection outlives them."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lockstep.serving import anthropic_forms

DRAIN_SECONDS = 1.0  # for what still comes of a request that is refused anyway

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Refusal(Exception):
    """A request is not admitted.

    Args:
        status: of HTTP.
        message: why, for people.
        reason: the same in a word for programs, where they act on it.
        headers: of the answer, beside those that belong to its status.
        code: OpenAI's word for it, where its clients act on one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        reason: str | None = None,
        headers: Headers | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.reason, self.headers = status, message, reason, headers or []
        self.code = code or status


async def refuse(refusal: Refusal, receive: Receive, send: Send, to_anthropics: bool = False) -> None:
    """Answer with a refusal; the connection stays open until a client that is still sending can have read it.

    Args:
        to_anthropics: the client is one of Anthropic's, and reads that form of errors.
    """
    kind = "invalid_request_error" if refusal.status < 500 and refusal.status != 429 else "unavailable"
    headers = list(refusal.headers)
    if refusal.status in (429, 503):
        headers.append((b"retry-after", b"2"))
    if refusal.status in (408, 413):
        headers.append((b"connection", b"close"))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    error = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
    error |= {"reason": refusal.reason} if refusal.reason else {}
    body: Any = {"error": error}
    if to_anthropics:
        body = anthropic_forms.error(refusal.status, refusal.message, refusal.reason)
    await answer(refusal.status, body, headers, send, more=True)
    if refusal.status in (408, 413):
        await _drain_until_gone(receive)
    await send({"type": "http.response.body", "body": b""})


async def answer(status: int, value: Any, headers: Headers, send: Send, more: bool = False) -> None:
    """Answer with a JSON value.

    Args:
        more: the caller sends the body's end.
    """
    body = json.dumps(value).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": own + headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def body_of(
    headers: dict[bytes, bytes], receive: Receive, limit: int, next_piece: Callable[[], None] = lambda: None
) -> bytes:
    """The whole body of a request.

    Args:
        limit: bytes that it may have.
        next_piece: called after each piece that another one follows.

    Raises:
        Refusal: it is larger, or the client goes.
    """
    too_big = Refusal(413, f"the body is larger than {limit} bytes (--serve.max_body_bytes)")
    if int(headers.get(b"content-length", b"0") or 0) > limit:
        raise too_big
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the connection was cut before the body was whole")
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_big
        if not message.get("more_body"):
            return bytes(body)
        next_piece()


async def drain_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> None:
    """Read the body that is on its way: closed on unread bytes, a connection is reset and the answer is lost.

    Nothing of it is kept.
    """
    if int(headers.get(b"content-length", b"0") or 0) > limit:
        return

    async def drain() -> None:
        size = 0
        while size <= limit:
            message = await receive()
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(drain(), DRAIN_SECONDS)


async def _drain_until_gone(receive: Receive) -> None:
    """Read what still comes until the client has read its answer and gone: closed at once, its connection would be
    reset, and the answer might be lost."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gone(), DRAIN_SECONDS)
