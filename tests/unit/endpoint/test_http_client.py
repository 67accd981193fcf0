"""The one HTTP client, against a small real server and against what is none."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.serving import free_port

from lockstep.endpoint.http_client import HttpClient, NoResponse


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was sent."""

    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(307)
            self.send_header("Location", "/metrics")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.echo(200)

    def do_POST(self) -> None:
        self.echo(503)

    def echo(self, status: int) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        data = json.dumps({"path": self.path, "headers": headers, "body": body}).encode() + b"\xff"
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def test_key_and_secret_go_along_and_no_proxy_stands_between(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which leads nowhere
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("LOCKSTEP_API_KEY", "sesame")
    response = HttpClient(url, "s" * 43).request("/metrics")
    assert response.status == 200 and response.text.endswith("\ufffd")  # no UTF-8 at its end
    echo = json.loads(response.text[:-1])
    assert echo["path"] == "/metrics" and echo["headers"]["authorization"] == "Bearer sesame"
    assert echo["headers"]["x-lockstep-secret"] == "s" * 43
    monkeypatch.delenv("LOCKSTEP_API_KEY")
    headers = json.loads(HttpClient(url).request("/v1/models").text[:-1])["headers"]
    assert not {"authorization", "x-lockstep-secret"} & headers.keys()


def test_neither_a_question_nor_a_secret_follows_a_redirect(url: str) -> None:
    assert HttpClient(url).request("/elsewhere").status == 307
    assert HttpClient(url, "s" * 43).request("/elsewhere").status == 307
    assert "sss" not in repr(HttpClient(url, "s" * 43))


def test_a_body_is_posted_as_json_and_an_error_status_is_a_response(url: str) -> None:
    response = HttpClient(url).request("/v1/completions", {"prompt": "你"})
    echo = json.loads(response.text[:-1])
    assert response.status == 503 and json.loads(echo["body"]) == {"prompt": "你"}
    assert echo["headers"]["content-type"] == "application/json"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf"])
def test_what_is_no_whole_response_is_none(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            connection = listener.accept()[0]
            connection.recv(65536)
            connection.sendall(answer)
            connection.close()

        threading.Thread(target=speak, daemon=True).start()
        with pytest.raises(NoResponse, match="/v1/models: no answer"):
            HttpClient(f"http://127.0.0.1:{listener.getsockname()[1]}/v1").request("/v1/models")


def test_silence_and_nobody_end_in_the_same_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(NoResponse):
            HttpClient(f"http://127.0.0.1:{listener.getsockname()[1]}/v1").request("/health", timeout=0.2)
        assert time.monotonic() - started < 5
    with pytest.raises(NoResponse):
        HttpClient(f"http://127.0.0.1:{free_port()}/v1").request("/health")
    with pytest.raises(NoResponse):
        HttpClient("http://[::1%x/v1").request("/health")


def test_a_proxy_that_cannot_be_spoken_to_is_no_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:9")
    with pytest.raises(NoResponse, match="cannot be asked"):
        HttpClient("http://models.example/v1").request("/health")
