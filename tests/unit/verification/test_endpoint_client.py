"""How an endpoint is asked, and which engine it is."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lockstep.errors import UserError
from lockstep.verification import endpoint_client
from lockstep.verification.endpoint_client import LLAMA_CPP, OLLAMA, SGLANG, TRANSFORMERS, UNKNOWN, VLLM, NotOffered

MODELS = {"data": [{"id": "m"}]}


@contextmanager
def server(routes: dict[str, Any], headers: list[Any] | None = None) -> Iterator[str]:
    """Answers with what stands under a path: JSON, or (status, JSON); 404 elsewhere."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if headers is not None:
                headers.append(dict(self.headers))
            answer = routes.get(self.path, (404, {"error": {"message": "no such route"}}))
            status, content = answer if isinstance(answer, tuple) else (200, answer)
            body = json.dumps(content).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://127.0.0.1:1/v1/models")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        running.server_close()


@pytest.mark.parametrize(
    ("routes", "engine"),
    [
        ({"/props": {"default_generation_settings": {}}}, LLAMA_CPP),
        ({"/api/version": {"version": "0.14"}, "/api/show": {"template": "x"}}, OLLAMA),
        ({"/get_model_info": {"model_path": "x"}}, SGLANG),
        ({"/openapi.json": {"paths": {"/load_model": {}, "/reset": {}}}}, TRANSFORMERS),
        ({"/version": {"version": "0.32"}}, VLLM),
        ({"/v1/models": {"data": [{"id": "m", "max_model_len": 512}]}}, VLLM),
        ({}, UNKNOWN),
    ],
)
def test_an_engine_is_known_by_its_routes(routes: dict[str, Any], engine: str) -> None:
    with server({"/v1/models": MODELS} | routes) as url:
        endpoint = endpoint_client.connect(f"{url}/v1", None)
    assert (endpoint.engine, endpoint.model) == (engine, "m")


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, "has 2 models (a, b): say which with --model"),
        ((401, {"error": "no"}), "set LOCKSTEP_API_KEY"),
        ((302, {}), "redirects elsewhere"),
        ((404, {}), "lists no model"),
    ],
)
def test_what_a_person_can_mend_is_said_in_a_line(models: Any, words: str) -> None:
    with server({"/v1/models": models}) as url, pytest.raises(UserError) as error:
        endpoint_client.connect(url, None)
    assert words in str(error.value)


def test_nobody_there_is_said() -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        endpoint_client.connect("http://127.0.0.1:1/v1", None)


def test_the_key_travels_and_only_in_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_API_KEY", "secret-1")
    headers: list[Any] = []
    with server({"/v1/models": MODELS}, headers) as url:
        endpoint = endpoint_client.connect(url, None)
        with pytest.raises(NotOffered):
            endpoint.chat([{"role": "user", "content": "?"}])
    assert {header["Authorization"] for header in headers} == {"Bearer secret-1"}
    assert "secret-1" not in repr(endpoint)


def test_a_slow_engine_is_asked_less() -> None:
    endpoint = endpoint_client.Endpoint("http://127.0.0.1:1/v1")
    assert endpoint.affordable(range(500)) == list(range(500))
    endpoint._note(10.0)
    assert len(endpoint.affordable(range(500))) <= 48
    endpoint._note(1000.0)
    assert endpoint_client.FEWEST // 2 <= len(endpoint.affordable(range(500))) <= endpoint_client.FEWEST
