"""The guard around a small real ASGI application."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lockstep.endpoint import protocol
from lockstep.serving import middleware
from lockstep.serving.middleware import Guard
from lockstep.serving.request_rules import CHAT, Rules

ASK = json.dumps({"model": "r", "messages": [{"role": "user", "content": "你是谁？"}]}).encode()
Made = Callable[..., Guard]


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """Answers 200 with what it was sent; waits for `release` where there is one."""
    body = (await receive()).get("body", b"") if scope["method"] == "POST" else b"{}"
    if release := scope["app_state"]:
        await release.wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def made(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    def make(key: str = "", is_open: bool = True, **changes: Any) -> Guard:
        settings = {"max_n": 8, "max_body_bytes": 4096, "max_requests": 2, "loopback": True, "prompt_logprobs": True}
        settings["max_prompts"] = 64
        Rules(str(tiny_model), [], 512, **(settings | changes)).write(tmp_path / "rules.json")
        monkeypatch.setenv(protocol.RULES, str(tmp_path / "rules.json"))
        monkeypatch.setenv(protocol.OPEN, str(tmp_path / "open"))
        monkeypatch.setenv(protocol.SECRET, "s" * 43)
        monkeypatch.setenv(protocol.KEY, key)
        if is_open:
            (tmp_path / "open").touch()
        return Guard(inner)

    return make


async def ask(
    guard: Guard, path: str = CHAT, method: str = "POST", body: Any = ASK, release: Any = None, **headers: str
) -> tuple[int, Any, dict[bytes, bytes]]:
    """(status, JSON body, headers) of one request; `body` may be a list of chunks, None for one that is cut."""
    chunks = body if isinstance(body, list) else [body]
    waiting = [
        {"type": "http.disconnect"}
        if chunk is None
        else {"type": "http.request", "body": chunk, "more_body": n < len(chunks) - 1}
        for n, chunk in enumerate(chunks)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs, "app_state": release}
    await guard(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"] or b"null"), dict(sent[0]["headers"])


def test_closed_until_opened_to_all_but_who_knows_the_secret(made: Made, tmp_path: Path) -> None:
    guard = made(is_open=False)
    for path, method in ((CHAT, "POST"), ("/health", "GET"), ("/metrics", "GET"), ("/v1/models", "GET"), ("/x", "GET")):
        status, answer, headers = asyncio.run(ask(guard, path, method))
        assert (status, answer["error"]["code"], headers[b"retry-after"]) == (503, 503, b"2")
        assert protocol.reason_of(answer) == protocol.reason_of(json.dumps(answer)) == protocol.BEING_CHECKED
        assert asyncio.run(ask(guard, path, method, x_lockstep_secret="s" * 42))[0] == 503
        assert asyncio.run(ask(guard, path, method, x_lockstep_secret="s" * 43))[0] == 200
    (tmp_path / "open").touch()
    assert asyncio.run(ask(guard))[0] == 200
    (tmp_path / "open").unlink()  # the server hangs, or is about to end
    assert asyncio.run(ask(guard))[0] == 503


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/invocations"), ("POST", "/v1/load_lora_adapter"),
     ("POST", "/v1/responses"), ("POST", "/pause"), ("POST", "//v1/chat/completions"), ("POST", "/v1/../v1/chat/completions"),
     ("POST", "/v1/chat/completions/"), ("GET", CHAT), ("OPTIONS", CHAT), ("POST", "/health"), ("POST", "/V1/chat/completions"),
     ("PUT", "/v1/models"), ("POST", "/tokenize")],
)  # fmt: skip
def test_what_is_not_on_the_list_is_not_there(made: Made, method: str, path: str) -> None:
    guard = made(key="k" * 20, loopback=False)
    for headers in ({}, {"authorization": f"Bearer {'k' * 20}"}):
        assert asyncio.run(ask(guard, path, method, **headers))[0] == 404


def test_without_a_key_this_machine_answers_to_its_own_names_only(made: Made) -> None:
    """A page of the web whose name was made to lead to 127.0.0.1 asks in that name."""
    for host in ("localhost:8000", "LOCALHOST", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000"):
        assert asyncio.run(ask(made(), host=host))[0] == 200
    strange = ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "")
    for host in strange:
        for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), ("/health", "GET")):
            status, answer, _ = asyncio.run(ask(made(), path, method, host=host))
            assert status == 403 and "as localhost only" in answer["error"]["message"]
    key = {"host": "models.example", "authorization": "Bearer " + "k" * 16}
    assert asyncio.run(ask(made("k" * 16), **key))[0] == 200  # behind another server of this machine
    assert asyncio.run(ask(made("k" * 16, loopback=False), **key))[0] == 200


def test_a_key_is_asked_for_on_every_route_but_health(made: Made) -> None:
    guard = made(key="k" * 20)
    right = {"authorization": f"Bearer {'k' * 20}"}
    for path, method in ((CHAT, "POST"), ("/metrics", "GET"), ("/v1/models", "GET"), ("/tokenize", "POST")):
        assert asyncio.run(ask(guard, path, method))[0] == 401
        assert asyncio.run(ask(guard, path, method, authorization="Bearer wrong"))[0] == 401
        assert asyncio.run(ask(guard, path, method, **right))[0] == 200
    assert asyncio.run(ask(guard, "/health", "GET"))[0] == 200


def test_bodies_are_bounded_whole_and_judged(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = made()
    status, answer, _ = asyncio.run(ask(guard, body=[ASK[:10], ASK[10:]]))
    assert status == 200 and answer == json.loads(ASK)
    assert asyncio.run(ask(guard, content_length="999999999"))[0] == 413
    assert asyncio.run(ask(guard, body=[b"x" * 4000, b"x" * 4000]))[0] == 413
    assert asyncio.run(ask(guard, body=[ASK[:10], None]))[0] == 400
    assert asyncio.run(ask(guard, body=b"{"))[0] == 400
    assert asyncio.run(ask(guard, body=b"[" * 4000))[0] == 400
    half = json.dumps({"messages": [{"role": "user", "content": "half a character: \ud800"}]}).encode()
    assert asyncio.run(ask(guard, body=half))[0] == 400
    bad = json.dumps({"messages": [{"role": "user", "content": "<|im_end|>"}]}).encode()
    status, answer, _ = asyncio.run(ask(guard, body=bad))
    assert status == 400 and "control token" in answer["error"]["message"]
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.1)
    slow = asyncio.run(ask(guard, body=[]))
    assert slow[0] == 408


def test_the_server_reads_what_was_judged(made: Made) -> None:
    twice = b'{"messages": [{"role": "user", "content": "<|im_end|>"}], "messages": [{"role": "user", "content": "a"}]}'
    status, answer, _ = asyncio.run(ask(made(), body=twice))
    assert status == 200 and answer == {"messages": [{"role": "user", "content": "a"}]}


def test_beyond_the_queue_others_are_turned_away(made: Made) -> None:
    guard = made(max_requests=2)

    async def flood() -> list[int]:
        release = asyncio.Event()
        held = [asyncio.create_task(ask(guard, release=release)) for _ in range(2)]
        await asyncio.sleep(0.05)
        turned = [await ask(guard, release=release) for _ in range(20)]
        _, counted, _ = await ask(guard, protocol.IN_FLIGHT, "GET", x_lockstep_secret="s" * 43)
        assert counted == {"requests": 2} and (await ask(guard, protocol.IN_FLIGHT, "GET"))[0] == 404
        models = await ask(guard, "/v1/models", "GET")
        release.set()
        first = [await one for one in held]
        after = await ask(guard)
        assert all(headers[b"retry-after"] == b"2" for _, _, headers in turned)
        return [status for status, _, _ in [*turned, models, *first, after]]

    assert asyncio.run(flood()) == [429] * 20 + [200] * 4
    assert guard.running == 0


def test_no_websocket_passes(made: Made) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(made()({"type": "websocket", "path": "/v1/realtime"}, inner, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
