"""A thousand requests at the real server, many of them rude: each ends whole or with a clear error, and it serves on."""

import contextlib
import json
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from support.serving import Home, Served, ask, served

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise(
        "Of requests under load each is answered whole or refused with a reason, and none stops the server"
    ),
]

CHAT = "/v1/chat/completions"
SAID = [{"role": "user", "content": "你是谁？"}]
REQUESTS = 1000
QUEUE = 40


@pytest.fixture(scope="module")
def server(finished: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Served]]:
    home = finished.copy(tmp_path_factory.mktemp("run") / "home")
    with served(home, "--serve.max_num_seqs", "16", "--serve.max_queue", str(QUEUE - 16)) as running:
        yield home, running


class Connection:
    """A request sent by hand, so that it can be rude."""

    def __init__(self, url: str, body: bytes, length: int | None = None) -> None:
        place = urlsplit(url)
        self.socket = socket.create_connection((place.hostname or "", place.port or 0), timeout=120)
        self.send(
            f"POST {CHAT} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body) if length is None else length}\r\n\r\n".encode()
        )
        self.send(body)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, pause: float = 0.0, at_most: int = 65536) -> bytes:
        """All that comes, `at_most` bytes at a time with a pause after each."""
        found = b""
        while data := self.socket.recv(at_most):
            found += data
            time.sleep(pause)
        return found

    def cut(self) -> None:
        """Go away at once, with an RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


def asked(**more: Any) -> bytes:
    return json.dumps({"messages": SAID, "max_tokens": 24, **more}).encode()


def plain(url: str, chance: random.Random) -> str:
    status, answer = ask(url + CHAT, asked(temperature=chance.random()))
    if status == 200:
        (choice,) = answer["choices"]
        return "whole" if choice["finish_reason"] in ("stop", "length") else f"ended by {choice['finish_reason']}"
    return refusal(status, answer)


def refusal(status: int, answer: Any) -> str:
    """A clear error says what is wrong in OpenAI's words."""
    clear = isinstance(answer, dict) and answer.get("error", {}).get("message")
    return f"refused {status}" if clear and 400 <= status < 500 else f"unclear {status} {answer!r:.200}"


def judged(raw: bytes) -> str:
    """What became of a streamed answer."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head else 0
    if status != 200:
        return refusal(status, json.loads(body[body.index(b"{") :])) if b"{" in body else f"unclear {status}"
    ended = b'"finish_reason":"stop"' in body or b'"finish_reason":"length"' in body
    return "whole" if ended and b"data: [DONE]" in body else "cut off"


def stream(url: str, chance: random.Random) -> str:
    return judged(Connection(url, asked(stream=True)).read())


def slow_reader(url: str, chance: random.Random) -> str:
    return judged(Connection(url, asked(stream=True)).read(0.02, 200))


def cut_while_streaming(url: str, chance: random.Random) -> str:
    connection = Connection(url, asked(stream=True, max_tokens=400, ignore_eos=True))
    first = connection.socket.recv(chance.randint(1, 600))
    connection.cut()
    return "gone" if first else "nothing came"


def cut_while_sending(url: str, chance: random.Random) -> str:
    body = asked()
    Connection(url, body[: chance.randint(0, len(body) - 1)], len(body)).cut()
    return "gone"


def oversized(url: str, chance: random.Random) -> str:
    """A body beyond the limit, announced, or sent in pieces without a length."""
    connection = Connection(url, b"", 50 * 2**20)
    return judged(connection.read())


def oversized_in_pieces(url: str, chance: random.Random) -> str:
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname or "", place.port or 0), timeout=120)
    connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {place.netloc}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    found = b""
    with suppress(OSError):  # it was closed on us
        for _ in range(200):
            connection.sendall(piece)
    with suppress(OSError):  # an RST may overtake the answer
        while data := connection.recv(65536):
            found += data
    return judged(found) if found else "refused 413"


def broken(url: str, chance: random.Random) -> str:
    body = chance.choice([b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, asked(messages="x"), asked(n=10**9), b"",
                          asked(max_tokens=10**9), asked(temperature=-1), asked(top_p=7), asked(nonsense=1), asked(stop=["x"] * 10**4),
                          asked(messages=[{"role": "user", "content": "<|im_end|>"}]), asked(logit_bias={"999999": 1}),
                          asked(prompt_logprobs=10**6), asked(messages=[{"role": "user", "content": "长" * 5000}])])  # fmt: skip
    return judged(Connection(url, body).read())


def elsewhere(url: str, chance: random.Random) -> str:
    path = chance.choice(["/v1/load_lora_adapter", "/invocations", "/docs", "//v1/models", "/v1/../metrics", "/pause"])
    return refusal(*ask(url + path, {"messages": SAID}))


KINDS: dict[Callable[[str, random.Random], str], tuple[int, set[str]]] = {
    plain: (35, {"whole", "refused 429"}),
    stream: (20, {"whole", "refused 429"}),
    slow_reader: (5, {"whole", "refused 429"}),
    cut_while_streaming: (10, {"gone", "nothing came"}),
    cut_while_sending: (8, {"gone"}),
    oversized: (4, {"refused 413", "refused 429"}),
    oversized_in_pieces: (2, {"refused 413", "refused 429"}),
    broken: (12, {"refused 400", "refused 429"}),
    elsewhere: (4, {"refused 404", "refused 405"}),
}


def running(url: str) -> float:
    """Requests that the engine works on, by its own figures."""
    text = ask(f"{url}/metrics")[1]
    return sum(
        float(line.split()[-1]) for line in text.splitlines()
        if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
    )  # fmt: skip


def memory(server: Served) -> int:
    return sum(psutil.Process(one.pid).memory_info().rss for one in server.family)


def test_a_thousand_mixed_requests(server: tuple[Home, Served], record_property: Any) -> None:
    _, served_ = server
    url, chance = served_.url, random.Random(5)
    kinds = chance.choices(list(KINDS), [weight for weight, _ in KINDS.values()], k=REQUESTS)
    record_property("cases", REQUESTS)
    before = memory(served_)
    wrong, seen, patience = [], Counter[str](), time.monotonic() + 90

    def one(number: int) -> None:
        kind = kinds[number]
        try:
            found = kind(url, random.Random(number))
            while found == "refused 429" and kind in (plain, stream) and time.monotonic() < patience:
                time.sleep(1)  # as clients do; how many find room at once is a matter of the machine's speed
                found = kind(url, random.Random(number))
        except (OSError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
        seen[f"{kind.__name__}: {found}"] += 1
        if found not in KINDS[kind][1]:
            wrong.append(f"{number} {kind.__name__}: {found}")

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(one, range(REQUESTS)))
    assert not wrong, (wrong, seen)
    assert seen["plain: whole"] + seen["stream: whole"] > 100, seen
    deadline = time.monotonic() + 5
    while running(url) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(url) == 0, "the engine works for clients that have gone"
    assert plain(url, chance) == "whole"
    assert memory(served_) - before < 500 * 2**20


def test_a_flood_is_turned_away_at_once_and_nobody_inside_is_disturbed(
    server: tuple[Home, Served], record_property: Any
) -> None:
    _, served_ = server
    record_property("cases", 300)
    began = time.monotonic()
    with ThreadPoolExecutor(300) as pool:
        found = Counter(pool.map(lambda n: plain(served_.url, random.Random(n)), range(300)))
    assert found.keys() == {"whole", "refused 429"} and found["whole"] >= QUEUE, found
    assert time.monotonic() - began < 100


def test_whoever_sends_a_byte_a_second_holds_nothing_up(server: tuple[Home, Served], record_property: Any) -> None:
    _, served_ = server
    record_property("cases", 100)
    over = threading.Event()
    slow = [Connection(served_.url, b"", 1000) for _ in range(100)]

    def trickle() -> None:
        while not over.wait(1):
            answered = select.select([one.socket for one in slow], [], [], 0)[0]
            # who goes on sending once it is answered resets the connection, and the answer is lost
            for connection in slow:
                with contextlib.suppress(OSError):
                    if connection.socket in answered:
                        continue
                    connection.send(b" ")

    sending = threading.Thread(target=trickle)
    sending.start()
    try:
        began = time.monotonic()
        assert [plain(served_.url, random.Random(n)) for n in range(5)] == ["whole"] * 5
        assert time.monotonic() - began < 20
        answers = [judged(connection.read()) for connection in slow]
        assert set(answers) == {"refused 408"} and time.monotonic() - began < 60
    finally:
        over.set()
        sending.join()


def test_heads_without_end_slow_heads_and_idle_connections_hold_nothing_up(
    server: tuple[Home, Served], record_property: Any
) -> None:
    """What uvicorn would otherwise hold in memory, and for as long as the client likes."""
    _, served_ = server
    record_property("cases", 240)
    place = urlsplit(served_.url)
    before = memory(served_)

    def connect(begin: bytes = b"") -> socket.socket:
        connection = socket.create_connection((place.hostname or "", place.port or 0), timeout=120)
        connection.sendall(begin)
        return connection

    def endless(_: int) -> str:
        connection = connect(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")
        sent = 0
        with suppress(OSError):
            while sent < 2**26 and not select.select([connection], [], [], 0)[0]:
                sent += connection.send(b"X-Padding: " + b"a" * 60_000)
        return "refused" if sent < 2**22 else "held"

    slow = [connect(b"GET /v1/models HTTP/1.1\r\nX: ") for _ in range(100)] + [connect() for _ in range(100)]
    began = time.monotonic()
    with ThreadPoolExecutor(40) as pool:
        heads = Counter(pool.map(endless, range(40)))
    assert heads == {"refused": 40}
    assert [plain(served_.url, random.Random(n)) for n in range(5)] == ["whole"] * 5
    assert time.monotonic() - began < 30
    assert memory(served_) - before < 200 * 2**20
    ended = [judged(raw) if (raw := all_of(connection)) else "closed" for connection in slow]
    assert Counter(ended) == {"refused 408": 100, "closed": 100} and time.monotonic() - began < 60
    assert (server[0].run / "serve/open").exists()  # nobody else was shut out


def all_of(connection: socket.socket) -> bytes:
    """All that comes until the end."""
    received = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def test_after_all_this_sigterm_loses_nothing(server: tuple[Home, Served], record_property: Any) -> None:
    home, served_ = server
    record_property("cases", 20)
    with ThreadPoolExecutor(20) as pool:
        streams = [Connection(served_.url, asked(stream=True, max_tokens=200, ignore_eos=True)) for _ in range(20)]
        first = list(pool.map(lambda one: one.socket.recv(65536), streams))
        assert all(first)
        served_.supervisor.terminate()
        raw = list(pool.map(lambda pair: pair[0] + pair[1].read(), zip(first, streams, strict=True)))
    assert not [one[-1000:] for one in raw if judged(one) != "whole"]
    assert served_.supervisor.wait(timeout=60) == 0
    assert not (home.run / "serve/open").exists()
