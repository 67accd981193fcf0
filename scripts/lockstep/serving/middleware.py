"""The door of vLLM's server: closed until the gate opens it, and then open only to what is on the list.

vLLM listens as soon as it can, with every route that it has, some of them without a key. Its
`--middleware lockstep.serving.middleware.Guard` puts this outermost. The supervisor says by a file whether
the endpoint is open, so that all of the server's processes hear it; until then only who knows the
secret of this start is let in.
"""

import asyncio
import contextlib
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from lockstep.endpoint import protocol
from lockstep.serving.request_rules import GENERATING, Rules

BODY_SECONDS = 30.0  # for a body to arrive: who sends more slowly holds nothing up
HEAR_OUT_SECONDS = 1.0  # for that of a request that is refused anyway
HERE = re.compile(rb"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)  # this machine, as clients call it

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(Exception):
    """A request is not let in.

    Args:
        status: of HTTP.
        message: why, for people.
        reason: the same in a word for programs, where they act on it.
    """

    def __init__(self, status: int, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason


class Guard:
    """Pure ASGI, so that streams pass through untouched. Settings come from the environment (see the constants)."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.rules = Rules.read(Path(os.environ[protocol.RULES]))
        self.open = Path(os.environ[protocol.OPEN])
        self.secret = os.environ[protocol.SECRET].encode()
        self.key = protocol.key().encode()
        self.running, self.judging = 0, asyncio.Semaphore(1)
        self.rules.template.control_token("")  # loaded now, and not while the first client waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = dict(scope["headers"])
        if hmac.compare_digest(headers.get(protocol.HEADER, b""), self.secret):
            if scope["path"] == protocol.IN_FLIGHT:
                return await _answer(200, {"requests": self.running}, [], send)
            return await self.app(scope, receive, send)
        route = ""
        try:
            route = self._at_the_door(scope, headers)
            if scope["method"] == "POST":
                receive = await self._checked(route, headers, receive)
                self._at_the_door(scope, headers)  # others may have come while the body did, or it was shut
        except Refusal as refusal:
            if not route:
                await self._hear_out(headers, receive)
            await _refuse(refusal, send)
            if refusal.status in (408, 413):
                await _linger(receive)
            return await send({"type": "http.response.body", "body": b""})
        if route == "/health":  # the canary has answered; vLLM's own would hang with its engine
            return await _answer(200, {"status": "open"}, [], send)
        if route not in GENERATING:
            return await self.app(scope, receive, send)
        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1

    def _at_the_door(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """The route, if it may be asked at all."""
        if not self.open.exists():
            message = "the gate has not opened: the server is being checked, or does not answer (make status)"
            raise Refusal(503, message, protocol.BEING_CHECKED)
        if self.rules.loopback and not self.key and not HERE.fullmatch(headers.get(b"host", b"localhost")):
            # a page of the web whose name leads to this machine asks in its own name
            raise Refusal(403, "without LOCKSTEP_API_KEY this server answers as localhost only, and not by other names")
        route: str = scope["path"]
        if self.rules.routes.get(route) != scope["method"]:
            raise Refusal(404, f"{scope['method']} {route:.80} is not served here")
        given = headers.get(b"authorization", b"").partition(b" ")[2].strip()
        if self.key and route != "/health" and not hmac.compare_digest(given, self.key):
            raise Refusal(401, "a key is needed: Authorization: Bearer …", protocol.KEY_WANTED)
        self._room_for(route)
        return route

    def _room_for(self, route: str) -> None:
        if route in GENERATING and self.running >= self.rules.max_requests:
            message = f"{self.running} requests run and wait already: try again later"
            raise Refusal(429, message, protocol.FLOODED)

    async def _checked(self, route: str, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read and judge the body; returns what gives it to the server."""
        try:
            body = await asyncio.wait_for(self._body(headers, receive), BODY_SECONDS)
        except TimeoutError as error:
            raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error
        async with self.judging:  # in a thread, one at a time: a large body must not hold up the streams of others
            waiting = [await asyncio.to_thread(self._judged, route, body)]

        async def replay() -> MutableMapping[str, Any]:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await receive()  # what tells the server that the client has gone

        return replay

    def _judged(self, route: str, body: bytes) -> bytes:
        """The body written anew: the server reads what was judged, whatever another parser might see in the original."""
        try:
            asked = json.loads(body)
            again = json.dumps(asked, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:  # half a character, too, which no tokenizer takes
            raise Refusal(400, f"the body is not JSON: {error}") from error
        if reason := self.rules.refusal(route, asked):
            raise Refusal(400, reason)
        return again

    async def _hear_out(self, headers: dict[bytes, bytes], receive: Receive) -> None:
        """Take the body that is on its way: closed on unread bytes, a connection is reset, and the refusal may be lost."""
        with contextlib.suppress(Refusal, TimeoutError):
            await asyncio.wait_for(self._body(headers, receive), HEAR_OUT_SECONDS)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self.rules.max_body_bytes
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


async def _linger(receive: Receive) -> None:
    """Take what still comes until the client has read its answer and gone: closed at once, its connection is reset, and
    the answer may be lost."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gone(), HEAR_OUT_SECONDS)


async def _refuse(refusal: Refusal, send: Send) -> None:
    """Answer as OpenAI's API words its errors; the connection stays until the end is sent."""
    kind = "invalid_request_error" if refusal.status < 500 and refusal.status != 429 else "unavailable"
    headers = []
    if refusal.status in (429, 503):
        headers.append((b"retry-after", b"2"))
    if refusal.status in (408, 413):
        headers.append((b"connection", b"close"))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    error = {"message": refusal.message, "type": kind, "param": None, "code": refusal.status}
    error |= {"reason": refusal.reason} if refusal.reason else {}
    await _answer(refusal.status, {"error": error}, headers, send, more=True)


async def _answer(status: int, value: Any, headers: list[tuple[bytes, bytes]], send: Send, more: bool = False) -> None:
    body = json.dumps(value).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": own + headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})
