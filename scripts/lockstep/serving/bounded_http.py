"""uvicorn's HTTP/1.1 with bounds on all that a client may send, or leave unsent, before our own code sees a request.

uvicorn takes the parser httptools where that is installed, and vLLM's flags about heads act on the other one, h11. With
httptools a head without an end grows in memory, the fields of a trailer join those of the head, and the body of a
request that offers an upgrade to HTTP/2, as Java's client sends it, is lost. So this is h11, at a cost of 13 µs for
each piece of a stream, and with the checks that h11 leaves to its user (RFC 9112, sections 2.3, 3.2, 6.1 and 7.1.2).
"""

import asyncio
import json
import re
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from lockstep.endpoint import protocol

HEAD_BYTES = 2**16
HEAD_FIELDS = 128
HEAD_SECONDS = 20.0  # for a head to arrive, counted from the connection or from the first byte of a later head
STALL_SECONDS = 60.0  # that a client may take nothing of an answer
CLOSING_SECONDS = 1.0  # for a refused client to read why: closed on unread bytes, the connection would be reset
MOST_CONNECTIONS = 1024  # above it, whoever keeps us waiting the longest goes
ONLY_ONCE = {
    b"host",
    b"authorization",
    b"x-api-key",
    b"content-type",
    b"content-encoding",
    b"origin",
    protocol.HEADER,
}


class Connection(h11.Connection):
    """h11's state of a connection; `problem` says what was wrong with a request, as (HTTP status, message)."""

    problem: tuple[int, str] = (400, "this is no HTTP request")

    def next_event(self) -> Any:
        """The next event. Raises h11.RemoteProtocolError for what h11 refuses, and for what it lets through."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                self.problem = (431, f"the request's head is larger than {HEAD_BYTES} bytes")
            else:
                self.problem = (error.error_status_hint, f"this is no valid HTTP request: {error}"[:300])
            raise
        if not isinstance(event, h11.Request):
            return event
        if problem := _problem_of(event):
            self.problem = problem
            raise h11.RemoteProtocolError(problem[1], error_status_hint=problem[0])
        return _with_a_path(event)


def _problem_of(request: h11.Request) -> tuple[int, str] | None:
    """(HTTP status, why) where a head is refused; None where it may pass."""
    names = [name for name, _ in request.headers]
    version = request.http_version.decode()
    if version not in ("1.0", "1.1"):
        return 505, f"HTTP/{version} is not spoken here, HTTP/1.1 is"
    if len(names) > HEAD_FIELDS:
        return 431, f"the request's head has more than {HEAD_FIELDS} fields"
    if len(request.target) + sum(len(name) + len(value) for name, value in request.headers) > HEAD_BYTES:
        return 431, f"the request's head is larger than {HEAD_BYTES} bytes"
    for name in ONLY_ONCE:
        if names.count(name) > 1:
            return 400, f"the header {name.decode()} stands there more than once"
    if b"transfer-encoding" in names and (b"content-length" in names or version == "1.0"):
        return 400, "Transfer-Encoding beside Content-Length, or in HTTP/1.0, leaves open where the request ends"
    return None


def _with_a_path(request: h11.Request) -> h11.Request:
    """The same request; its target, where it is a whole URL, as clients send it to a proxy, cut down to the path."""
    scheme, separator, rest = request.target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return request
    path = rest[len(re.split(rb"[/?#]", rest, maxsplit=1)[0]) :]
    path = path if path.startswith(b"/") else b"/" + path
    return h11.Request(
        method=request.method, headers=list(request.headers), target=path, http_version=request.http_version
    )


class BoundedProtocol(H11Protocol):
    """One client's connection. uvicorn makes one for each."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn: Connection = Connection(h11.SERVER, HEAD_BYTES)
        self.since = self.loop.time()
        self.refused = False
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._late = self.loop.call_later(HEAD_SECONDS, self._head_is_late)
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_late()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        super().data_received(data)
        if self.is_arriving and not self._is_read_by_the_application:
            self._late = self._late or self.loop.call_later(HEAD_SECONDS, self._head_is_late)
        else:
            self._unset_late()

    @property
    def is_arriving(self) -> bool:
        """Whether the client has more to send before it can be answered, or has asked nothing."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    @property
    def _is_read_by_the_application(self) -> bool:
        """Whether a body is arriving that is awaited: the application bounds its size and time."""
        return self.conn.their_state is h11.SEND_BODY and not (self.cycle and self.cycle.response_complete)

    def _should_upgrade(self) -> bool:
        return False  # no WebSockets, and an offer of HTTP/2 is answered over HTTP/1.1

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """Say what was wrong, in the form of OpenAI's errors, and close. uvicorn calls it where h11 refuses."""
        self._refuse(*self.conn.problem)

    def _head_is_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, f"the request's head did not arrive within {HEAD_SECONDS:.0f} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        self.refused = True
        self._unset_late()
        if self.cycle:  # what reads the body of this request need not answer it any more
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way, or was given
            self.transport.close()
            return
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self.loop.call_later(CLOSING_SECONDS, self.transport.close)

    def _unset_late(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _make_room(self) -> None:
        """Close connections that have kept us waiting the longest: nobody's answer is cut."""
        connections = cast(set[BoundedProtocol], self.connections)
        others = [other for other in connections if other is not self and not other.transport.is_closing()]
        waiting = sorted((other for other in others if other.is_arriving), key=lambda other: other.since)
        for other in waiting[: max(0, len(others) + 1 - MOST_CONNECTIONS)]:
            other.transport.abort()
