"""uvicorn with our bounds on HTTP, asked by hand, so that requests can be cut, slow, endless and ambiguous."""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from lockstep.serving import bounded_http
from lockstep.serving.bounded_http import BoundedProtocol


class Inside:
    """An application that answers with what it sees of each request."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        text = {
            "method": scope["method"], "path": scope["path"], "body": body.decode(),
            "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
        }  # fmt: skip
        self.seen.append(text)
        answer = json.dumps(text).encode()
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[uvicorn.Server, Inside]]:
    inside = Inside()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    running = uvicorn.Server(
        uvicorn.Config(
            inside, http=BoundedProtocol, ws="none", lifespan="off", log_config=None, log_level="critical",
            access_log=False, timeout_keep_alive=90,
        )
    )  # fmt: skip
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not running.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield running, inside
    running.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def connect(server: tuple[uvicorn.Server, Inside]) -> Iterator[Any]:
    port = server[0].servers[0].sockets[0].getsockname()[1]
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))


def answer(connection: socket.socket) -> tuple[int, Any]:
    """(status, JSON) of the next answer; 0 where the connection was closed without."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n\r\n" not in got and (data := connection.recv(65536)):
            got += data
    if not got:
        return 0, None
    head, _, body = got.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += connection.recv(65536)
    return int(head.split()[1]), json.loads(body)


def ask(connection: socket.socket, raw: bytes) -> tuple[int, Any]:
    connection.sendall(raw)
    return answer(connection)


HEAD = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n", 400, "authorization"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Lockstep-Secret: a\r\nx-lockstep-secret: b\r\n\r\n", 400, "secret"),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 400, "Content-Length"),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "where the request ends"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "Transfer-Encoding"),
        (HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "where the request ends"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "no valid HTTP"),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400, "Content-Length"),
        (HEAD + b"X: a\0b\r\n\r\n", 400, "no valid HTTP"),
        (HEAD + b"X : a\r\n\r\n", 400, "no valid HTTP"),
        (HEAD + b"X: a\r\n" * 10_000 + b"\r\n", 431, "128 fields"),
        (HEAD + b"X: a\r\n" * 129 + b"\r\n", 431, "128 fields"),
        (HEAD + b"X: " + b"a" * 66_000 + b"\r\n\r\n", 431, "65536 bytes"),
        (b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "65536 bytes"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 99 + b"\r\n\r\n", 400, "no valid HTTP"),
    ],
    ids=range(18),
)  # fmt: skip
def test_what_is_ambiguous_or_too_large_is_refused_before_the_application(
    connect: Any, server: tuple[uvicorn.Server, Inside], raw: bytes, status: int, why: str
) -> None:
    before = len(server[1].seen)
    connection = connect()
    code, said = ask(connection, raw)
    assert code == status and why in said["error"]["message"] and said["error"]["code"] == status
    assert connection.recv(10) == b"" and len(server[1].seen) == before


@pytest.mark.parametrize("endless", [b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET /", b"GET / HTTP/1.1\r\nX: "])
def test_a_head_without_end_is_cut_off_at_the_bound(connect: Any, endless: bytes) -> None:
    connection = connect()
    connection.sendall(endless)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 2**24:
            sent += connection.send(b"a: b\r\n" * 500 if endless.endswith(b"\r\n") else b"a" * 3000)
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if connection.recv(65536):
                    break
            connection.setblocking(True)
    assert sent < 2**22
    other = connect()
    assert ask(other, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200


def test_what_is_valid_is_served_however_it_comes(connect: Any) -> None:
    connection = connect()
    for byte in HEAD + b"Content-Length: 2\r\n\r\n":
        connection.sendall(bytes([byte]))
    connection.sendall(b"{")
    time.sleep(0.05)
    assert ask(connection, b"}")[1]["body"] == "{}"
    # chunked, with a trailer, which never joins the head
    status, seen = ask(
        connection,
        HEAD + b"Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\n"
        b"Authorization: Bearer key\r\nX-Lockstep-Secret: s\r\n\r\n",
    )
    assert (status, seen["body"]) == (200, "{}")
    assert {name for name, _ in seen["headers"]} == {"host", "transfer-encoding", "trailer"}
    # pipelined
    connection.sendall(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n" * 1)
    assert answer(connection)[1]["path"] == "/1"
    # a whole URL as the target, as for a proxy; 65 KB of head in one piece are not yet too much
    status, seen = ask(
        connection, b"GET http://a:8/v1/models?x HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 60_000 + b"\r\n\r\n"
    )
    assert (status, seen["path"]) == (200, "/v1/models")
    assert ask(connection, b"GET http://a?x=/metrics HTTP/1.1\r\nHost: a\r\n\r\n")[1]["path"] == "/"


def test_pipelined_requests_are_answered_in_their_order(connect: Any) -> None:
    connection = connect()
    connection.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(50)))
    got = b""
    while got.count(b"HTTP/1.1 200") < 50 or not got.endswith(b"}"):
        got += connection.recv(65536)
    paths = [json.loads(part.split(b"\r\n\r\n")[1])["path"] for part in got.split(b"HTTP/1.1 200 OK")[1:]]
    assert paths == [f"/{number}" for number in range(50)]


def test_an_upgrade_is_answered_over_http_1_1(connect: Any) -> None:
    """Java's HttpClient offers HTTP/2 with its first request, whose body httptools drops."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIA\r\nContent-Length: 2\r\n\r\n"
    connection = connect()
    for _ in range(2):  # and the connection goes on
        connection.sendall(HEAD + offer)
        time.sleep(0.05)
        assert ask(connection, b"{}")[1]["body"] == "{}"
    websocket = b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"
    assert ask(connect(), websocket)[1]["path"] == "/v1/realtime"


def test_expect_and_http_1_0(connect: Any) -> None:
    connection = connect()
    connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    assert ask(connection, b"{}")[1]["body"] == "{}"
    old = connect()
    assert ask(old, b"POST /v1/x HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")[1]["body"] == "{}"
    assert old.recv(10) == b""


def test_whoever_sends_no_whole_head_in_time_goes(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.4)
    silent, cut, trickling, later = connect(), connect(), connect(), connect()
    cut.sendall(b"GET / HTTP/1.1\r\nHo")
    assert ask(later, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
    later.sendall(b"GET / HT")
    began = time.monotonic()
    with contextlib.suppress(OSError):  # each byte gives no more time
        while time.monotonic() - began < 3 and not _readable(trickling):
            trickling.sendall(b"G")
            time.sleep(0.05)
    assert 0.3 < time.monotonic() - began < 1.5
    assert answer(silent) == (0, None)
    assert answer(cut)[0] == answer(later)[0] == answer(trickling)[0] == 408


def test_a_body_that_is_left_unread_after_the_answer_has_its_time_too(
    connect: Any, monkeypatch: pytest.MonkeyPatch, server: tuple[uvicorn.Server, Inside]
) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.4)

    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    monkeypatch.setattr(server[0].config, "loaded_app", hasty)
    connection = connect()
    assert ask(connection, HEAD + b"Content-Length: 1000\r\n\r\n")[0] == 200
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < 3:
            connection.sendall(b"a")
            time.sleep(0.05)
    assert time.monotonic() - began < 1.5


def test_slow_connections_starve_nobody(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "MOST_CONNECTIONS", 150)
    slow = [connect() for _ in range(200)]
    for connection in slow[100:]:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
    polite = connect()
    assert ask(polite, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
    closed = [connection for connection in slow if _readable(connection)]
    assert len(closed) == 51 and {answer(connection)[0] for connection in closed} == {0}
    left = next(connection for connection in slow[100:] if connection not in closed)
    assert ask(left, b"\r\n")[0] == 200


def test_a_client_that_reads_nothing_is_let_go(
    connect: Any, monkeypatch: pytest.MonkeyPatch, server: tuple[uvicorn.Server, Inside]
) -> None:
    monkeypatch.setattr(bounded_http, "STALL_SECONDS", 0.3)
    gone = threading.Event()

    async def long(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"a" * 2**20, "more_body": True})
        gone.set()

    monkeypatch.setattr(server[0].config, "loaded_app", long)
    connection = connect()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert gone.wait(10)


def _readable(connection: socket.socket) -> bool:
    """Whether something has come, or the end."""
    return bool(select.select([connection], [], [], 0)[0])
