"""Admission to vLLM's server: nobody before the gate has opened, and after that only to the listed routes and fields.

vLLM listens as soon as it can, with every route that it has, and some of them ask for no key. Its flag
`--middleware lockstep.serving.middleware.Guard` makes this the outermost layer. A file says whether the endpoint is
open, so that all of the server's processes know; until then only requests with this start's secret are admitted.
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

from lockstep.artifacts import filenames
from lockstep.endpoint import protocol
from lockstep.serving.request_rules import GENERATING, Rules

BODY_SECONDS = 30.0  # for a body to arrive: a client that sends more slowly must not occupy a place
DRAIN_SECONDS = 1.0  # for what still comes of a request that is refused anyway
HERE = re.compile(rb"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)  # this machine, as clients call it

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(Exception):
    """A request is not admitted.

    Args:
        status: of HTTP.
        message: why, for people.
        reason: the same in a word for programs, where they act on it.
    """

    def __init__(self, status: int, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason


class Guard:
    """Pure ASGI, so that streams pass through untouched. Its settings come from the environment, see `protocol`."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.rules = Rules.read(Path(os.environ[protocol.RULES]))
        self.open = Path(os.environ[protocol.OPEN])
        self.secret = os.environ[protocol.SECRET].encode()
        self.key = protocol.key().encode()
        self.running, self.checking = 0, asyncio.Semaphore(1)
        self.rules.template.control_token("")  # loads it now, and not while the first client waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = dict(scope["headers"])
        if hmac.compare_digest(headers.get(protocol.HEADER, b""), self.secret):
            if scope["path"] == protocol.IN_FLIGHT:
                return await _answer(200, {"requests": self.running}, [], send)
            if scope["path"] == protocol.MODULES:
                return await _answer(200, {"adapters": await _adapter_blocks(scope["app"].state)}, [], send)
            return await self.app(scope, receive, send)
        route = ""
        try:
            route = self._admit(scope, headers)
            if scope["method"] == "POST":
                receive = await self._checked(route, headers, receive)
                self._admit(scope, headers)  # while the body came, others may have come too, or the endpoint closed
        except Refusal as refusal:
            if not route:
                await self._drain_body(headers, receive)
            await _refuse(refusal, send)
            if refusal.status in (408, 413):
                await _drain_until_gone(receive)
            return await send({"type": "http.response.body", "body": b""})
        if route == "/health":  # the canary has answered; vLLM's own route would hang with its engine
            return await _answer(200, {"status": "open"}, [], send)
        if route not in GENERATING:
            return await self.app(scope, receive, send)
        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """The route of a request that is admitted as far as its head tells. Raises Refusal."""
        if not self.open.exists():
            message = "the gate has not opened: the server is being checked, or does not answer (make status)"
            raise Refusal(503, message, protocol.BEING_CHECKED)
        if self.rules.loopback and not self.key and not HERE.fullmatch(headers.get(b"host", b"localhost")):
            # a web page whose name was made to lead to this machine sends its own name (DNS rebinding)
            raise Refusal(403, "without LOCKSTEP_API_KEY this server answers as localhost only, and not by other names")
        route: str = scope["path"]
        if self.rules.routes.get(route) != scope["method"]:
            raise Refusal(404, f"{scope['method']} {route:.80} is not served here")
        given = headers.get(b"authorization", b"").partition(b" ")[2].strip()
        if self.key and route != "/health" and not hmac.compare_digest(given, self.key):
            raise Refusal(401, "a key is needed: Authorization: Bearer …", protocol.KEY_WANTED)
        if route in GENERATING and self.running >= self.rules.max_requests:
            message = f"{self.running} requests run and wait already: try again later"
            raise Refusal(429, message, protocol.FLOODED)
        return route

    async def _checked(self, route: str, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read and check the body; returns what gives it to the server. Raises Refusal."""
        try:
            body = await asyncio.wait_for(self._body(headers, receive), BODY_SECONDS)
        except TimeoutError as error:
            raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error
        async with self.checking:  # in a thread, one at a time: a large body must not hold up the streams of others
            pending = [await asyncio.to_thread(self._rewritten, route, body)]

        async def replay() -> MutableMapping[str, Any]:
            if pending:
                return {"type": "http.request", "body": pending.pop(), "more_body": False}
            return await receive()  # which tells the server when the client has gone

        return replay

    def _rewritten(self, route: str, body: bytes) -> bytes:
        """The body, serialised again: the server reads what was checked, whatever it would see in the original."""
        try:
            value = json.loads(body)
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:  # half a character, too, which no tokenizer takes
            raise Refusal(400, f"the body is not JSON: {error}") from error
        if reason := self.rules.refusal(route, value):
            raise Refusal(400, reason)
        return json.dumps(value, ensure_ascii=False).encode()  # which the check may have changed: see `Rules.refusal`

    async def _drain_body(self, headers: dict[bytes, bytes], receive: Receive) -> None:
        """Read the body that is on its way: closed on unread bytes, a connection is reset and the answer is lost."""
        with contextlib.suppress(Refusal, TimeoutError):
            await asyncio.wait_for(self._body(headers, receive), DRAIN_SECONDS)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body. Raises Refusal where it is too large or the client goes."""
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


async def _adapter_blocks(state: Any) -> dict[str, list[Any]]:
    """Name of each adapter → what each of vLLM's workers says about it, see `worker_extension`.

    Of several engines (data parallelism), which all load the same file, the first one's workers answer.

    Args:
        state: of vLLM's application.
    """
    answers = {}
    for name, request in state.openai_serving_models.lora_requests.items():
        file = str(Path(request.lora_path) / filenames.ADAPTER_WEIGHTS)
        arguments = (request.lora_int_id, file)
        answers[name] = await state.engine_client.collective_rpc("lockstep_blocks", args=arguments)
    return answers


async def _drain_until_gone(receive: Receive) -> None:
    """Read what still comes until the client has read its answer and gone: closed at once, its connection would be
    reset, and the answer might be lost."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gone(), DRAIN_SECONDS)


async def _refuse(refusal: Refusal, send: Send) -> None:
    """Answer in the form of OpenAI's errors; the connection stays open until the body's end is sent."""
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
