"""The guard around a small real ASGI application."""

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lockstep.endpoint import protocol, server_note
from lockstep.serving import middleware
from lockstep.serving.middleware import Guard
from lockstep.serving.request_rules import CHAT, Rules

ASK = json.dumps({"model": "r", "messages": [{"role": "user", "content": "你是谁？"}]}).encode()
Made = Callable[..., Guard]


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """Answers 200 with what it was sent; waits for `release` where there is one."""
    body = (await receive()).get("body", b"") if scope["method"] == "POST" else b'{"data": [{"id": "r"}]}'
    if release := scope["app_state"]:
        await release.wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def made(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    def make(key: str = "", is_open: bool = True, **changes: Any) -> Guard:
        settings = {"max_n": 8, "max_body_bytes": 4096, "max_requests": 2, "loopback": True, "prompt_logprobs": True}
        settings |= {"max_prompts": 64, "tools": False}
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
    guard: Guard,
    path: str = CHAT,
    method: str = "POST",
    body: Any = ASK,
    release: Any = None,
    hang: bool = False,
    **headers: str,
) -> tuple[int, Any, dict[bytes, bytes]]:
    """(status, JSON body, headers) of one request; `body` may be a list of chunks, None for one that is cut.

    Args:
        hang: the last chunk never comes.
    """
    chunks = body if isinstance(body, list) else [body]
    waiting = [
        {"type": "http.disconnect"}
        if chunk is None
        else {"type": "http.request", "body": chunk, "more_body": n < len(chunks) - 1}
        for n, chunk in enumerate(chunks)
    ][: -1 if hang else None]
    sent: list[Any] = []

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = ({"content_type": "application/json"} if method == "POST" else {}) | headers
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
     ("POST", "/v1/embeddings"), ("POST", "/pause"), ("POST", "/v1/../v1/chat/completions"), ("POST", "/v1/chat%2Fcompletions"),
     ("POST", "/V1/chat/completions"), ("POST", "/tokenize"), ("OPTIONS", "/x"), ("GET", "/"), ("GET", "/v1"),
     ("GET", "/v1/models/../../metrics")],
)  # fmt: skip
def test_what_is_not_on_the_list_is_not_there(made: Made, method: str, path: str) -> None:
    guard = made(key="k" * 20, loopback=False)
    for headers in ({}, {"authorization": f"Bearer {'k' * 20}"}):
        expected = 401 if path.startswith("/v1/models/") and not headers else 404
        assert asyncio.run(ask(guard, path, method, **headers))[0] == expected


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, b"POST"), ("HEAD", CHAT, b"POST"), ("OPTIONS", CHAT, b"POST"), ("POST", "/health", b"GET, HEAD"),
     ("PUT", "/v1/models", b"GET, HEAD"), ("DELETE", "/v1/models/r", b"GET, HEAD")],
)  # fmt: skip
def test_a_route_that_is_asked_otherwise_names_its_method(made: Made, method: str, path: str, allowed: bytes) -> None:
    status, _, headers = asyncio.run(ask(made(), path, method))
    assert (status, headers[b"allow"]) == (405, allowed)


def test_slashes_too_many_and_a_base_url_without_its_end(made: Made) -> None:
    guard = made()
    for path in ("//v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/"):
        status, seen, _ = asyncio.run(ask(guard, path))
        assert status == 200 and seen == json.loads(ASK)
    for path, hint in (("/chat/completions", "one that ends in /v1"), ("/v1/v1/messages", "one without /v1")):
        status, answer, _ = asyncio.run(ask(guard, path))
        assert status == 404 and hint in answer["error"]["message"]


def test_a_model_can_be_asked_for_and_get_routes_have_heads(made: Made) -> None:
    for path in ("/v1/models/r", "/v1/models/r/", "//v1/models/r"):
        status, card, _ = asyncio.run(ask(made(), path, "GET"))
        assert (status, card["id"]) == (200, "r")
    status, answer, _ = asyncio.run(ask(made(), "/v1/models/other", "GET"))
    assert status == 404 and "'other' does not exist" in answer["error"]["message"]
    for path in ("/health", "/v1/models", "/v1/models/r"):
        assert asyncio.run(ask(made(), path, "HEAD"))[0] == 200


def test_bodies_are_refused_for_their_true_reason(made: Made) -> None:
    guard = made()
    text = json.dumps(json.loads(ASK), ensure_ascii=False)
    for body, headers, status, reason in (
        (gzip.compress(ASK), {"content_encoding": "gzip"}, 415, "compressed (Content-Encoding: gzip)"),
        (ASK, {"content_encoding": "identity"}, 200, ""),
        (ASK, {"content_type": "text/plain"}, 415, "Content-Type is text/plain"),
        (ASK, {"content_type": ""}, 415, "Content-Type is missing"),
        (ASK, {"content_type": "application/json; charset=utf-8"}, 200, ""),
        (b"", {}, 400, "the body is empty"),
        (b"\xef\xbb\xbf" + ASK, {}, 200, ""),
        (text.encode("gbk"), {}, 400, "not UTF-8: byte 0xc4"),
        (text.encode("utf-16"), {}, 400, "UTF-16"),
        (text.encode("utf-16-le"), {}, 400, "UTF-16"),
        (text.encode("utf-32"), {}, 400, "UTF-32"),
        (ASK[:-5], {}, 400, "not JSON"),
    ):
        code, answer, _ = asyncio.run(ask(guard, body=body, **headers))
        assert code == status, (body, headers, answer)
        assert status == 200 or reason in answer["error"]["message"], answer


PAGE = "http://localhost:5173"
PREFLIGHT = {
    "origin": PAGE, "access_control_request_method": "POST",
    "access_control_request_headers": "authorization,content-type,x-stainless-lang",
}  # fmt: skip


def test_pages_that_are_let_in_get_what_their_browser_asks_for(made: Made) -> None:
    guard = made(key="k" * 20, loopback=False, allowed_origins=[PAGE])
    status, _, headers = asyncio.run(ask(guard, method="OPTIONS", **PREFLIGHT))  # without the key
    assert status == 204 and headers[b"access-control-allow-origin"] == PAGE.encode()
    assert headers[b"access-control-allow-headers"] == b"authorization,content-type,x-stainless-lang"
    assert b"POST" in headers[b"access-control-allow-methods"] and b"access-control-allow-credentials" not in headers
    key = {"authorization": "Bearer " + "k" * 20}
    for more, code in (({}, 401), (key, 200)):  # refusals, too, can be read
        status, _, headers = asyncio.run(ask(guard, origin=PAGE, **more))
        assert status == code and headers[b"access-control-allow-origin"] == PAGE.encode()
        assert headers[b"vary"] == b"Origin"


def test_other_pages_get_nothing(made: Made) -> None:
    for origins in ([], [PAGE]):
        guard = made(allowed_origins=origins)
        for origin in ("http://localhost:5174", "https://localhost:5173", "http://evil.example", "null", f"{PAGE}/"):
            status, _, headers = asyncio.run(ask(guard, method="OPTIONS", **PREFLIGHT | {"origin": origin}))
            assert status == 403 and not [name for name in headers if name.startswith(b"access-control")]
            status, _, headers = asyncio.run(ask(guard, origin=origin))
            assert not [name for name in headers if name.startswith(b"access-control")]
            assert (headers.get(b"vary") == b"Origin") == bool(origins)
            # what a browser sends without asking first is no JSON by its head
            assert asyncio.run(ask(guard, origin=origin, content_type="text/plain"))[0] == 415
    anybody = made(key="k" * 20, allowed_origins=["*"])
    status, _, headers = asyncio.run(ask(anybody, method="OPTIONS", **PREFLIGHT | {"origin": "http://a.example"}))
    assert status == 204 and headers[b"access-control-allow-origin"] == b"http://a.example"


def test_while_it_is_checked_the_answer_says_how_far(made: Made, tmp_path: Path) -> None:
    guard = made(is_open=False)
    about = {"url": "u", "model": "r", "mode": "merged", "served": {}, "grace": 1}
    server_note.write(tmp_path, "checking", **about, progress="proof 2 of 4 (stops): 12 of 43 answered")
    assert asyncio.run(ask(guard))[1]["error"]["message"].endswith("proof 2 of 4 (stops): 12 of 43 answered")


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
        assert asyncio.run(ask(guard, path, method, authorization="Basic " + "k" * 20))[0] == 401
        assert asyncio.run(ask(guard, path, method, x_api_key="k" * 20))[0] == 200
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
    for depth in range(940, 1010, 2):  # about the deepest that can be read, as objects and as JSON texts
        deep = "[" * depth + "]" * depth
        for arguments in (json.dumps(deep), f'{{"a": {deep}}}'):
            call = f'{{"function": {{"name": "f", "arguments": {arguments}}}}}'
            deep_body = f'{{"messages": [{{"role": "assistant", "tool_calls": [{call}]}}]}}'.encode()
            assert asyncio.run(ask(guard, body=deep_body))[0] in (200, 400)
    assert b"too deeply" in json.dumps(asyncio.run(ask(guard, body=deep_body))[1]).encode()
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


def test_bodies_on_their_way_are_counted_and_keep_no_short_chat_out(made: Made) -> None:
    guard = made(max_requests=2)

    async def flood() -> tuple[list[int], int, int]:
        slow = [ASK[:10], ASK[10:20]]  # and no end
        held = [asyncio.create_task(ask(guard, body=[*slow, b""], hang=True)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert guard.arriving == 2
        turned = [await ask(guard, body=[ASK[:10], ASK[10:]]) for _ in range(20)]
        assert all(headers[b"retry-after"] == b"2" for _, _, headers in turned)
        assert protocol.reason_of(turned[0][1]) == protocol.FLOODED
        whole = (await ask(guard))[0]
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        return [status for status, _, _ in turned], whole, (await ask(guard, body=[ASK[:10], ASK[10:]]))[0]

    assert asyncio.run(flood()) == ([429] * 20, 200, 200)
    assert guard.arriving == guard.running == 0


def test_large_bodies_that_wait_to_be_checked_hold_up_no_chat(made: Made) -> None:
    guard = made(max_body_bytes=2**20)
    large = json.dumps({"messages": [{"role": "user", "content": "a" * 2**17}]}).encode()

    async def both() -> tuple[int, int, int]:
        async with guard.checking_large:  # as if one were being checked
            waiting = asyncio.create_task(ask(guard, body=large))
            small = (await asyncio.wait_for(ask(guard), 10))[0]
            unanswered = int(not waiting.done())
        return small, unanswered, (await waiting)[0]

    assert asyncio.run(both()) == (200, 1, 200)


def test_no_websocket_passes(made: Made) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(made()({"type": "websocket", "path": "/v1/realtime"}, inner, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_vllm_reads_what_is_left_of_a_request_and_not_what_was_dropped(made: Made) -> None:
    content = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    body = {
        "messages": [{"role": "user", "content": content, "name": None}],
        "metadata": {"a": "<|im_end|>"},
        "n": None,
    }
    status, seen, _ = asyncio.run(ask(made(), body=json.dumps(body | {"prompt_cache_key": "<|im_start|>"}).encode()))
    assert status == 200 and seen == {"messages": [{"role": "user", "content": "hi"}]}
