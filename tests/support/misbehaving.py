"""A small OpenAI-compatible server that goes wrong in every way that servers do."""

import json
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What is no chat completion, or not any more: as a whole answer, and as an event in the middle of one.
GARBAGE = {
    "not json": b'{"choices": [',
    "torn character": '{"id": "1", "choices": [{"delta": {"content": "你'.encode()[:-1],
    "not utf-8": b'{"id": "\xff"}',
    "huge number": b'{"id": ' + b"9" * 5000 + b"}",
    "deep": b"[" * 100_000,
    "number for a text": b'{"choices": [{"index": 0, "delta": {"content": 5}, "message": {"content": 5}, "finish_reason": "stop"}]}',
    "half a character": b'{"choices": [{"index": 0, "delta": {"content": "\\ud83d"}, "message": {"content": "\\ud83d"}, "finish_reason": "stop"}]}',
}

CLOSED = {"error": {"message": "the server is being checked", "reason": "being_checked"}}  # as the middleware says it


class Server(ThreadingHTTPServer):
    """Answers with the last message turned round.

    `fault(question, attempt)` says how a try goes wrong: a name that `Handler` knows, or "".
    """

    request_queue_size = 256
    daemon_threads = True
    mode = ""
    key = ""
    slow = 0.0  # seconds that each answer takes
    wait = "0"  # Retry-After of a 429
    pace = 0.0  # seconds between the pieces of a stream
    gate = True  # whether it is open
    elsewhere = ""  # where it redirects to
    models = ("r", "r-base")
    thought: tuple[str, str] | None = None  # the field's name, and what the model thinks before each answer
    metrics = ""  # what /metrics says

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.seen: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()
        self.answer: Callable[[str, str], str] = lambda model, question: (
            question.removeprefix("repeat ") if question.startswith("repeat ") else question[::-1]
        )
        self.fault: Callable[[str, int], str] = lambda question, attempt: self.mode

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    status = 200  # of an answer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def send(self, body: Any, status: int = 200, **headers: str) -> None:
        self.send_bytes(json.dumps(body).encode(), status, **headers)

    def send_bytes(self, data: bytes, status: int = 200, missing: int = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) + missing))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = bool(missing)

    def do_GET(self) -> None:
        if not self.server.gate:
            return self.send(CLOSED, 503)
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.send({"error": {"message": "a key is needed"}}, 401)
        if self.path == "/metrics":
            return self.send_bytes(self.server.metrics.encode(), Content_Type="text/plain")
        if not self.path.startswith("/v1/"):
            return self.send({"detail": "Not Found"}, 404)
        return self.send({"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.startswith("/v1/"):
            return self.send({"detail": "Not Found"}, 404)
        self.server.seen.append(body)
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.send({"error": {"message": "Unauthorized"}}, 401)
        if body["model"] not in self.server.models:
            return self.send({"error": {"message": "no such model"}}, 404)
        question = body["messages"][-1]["content"]
        if "too long" in question or body["max_tokens"] > 10**6:
            return self.send({"error": {"message": f"maximum context length is 16,\nnot {body['max_tokens']}"}}, 400)
        fault = self.server.fault(question, self.server.tries[question])
        self.server.tries[question] += 1
        time.sleep(self.server.slow)
        answer = self.server.answer(body["model"], question)
        if fault == "429":
            return self.send({"error": {"message": "too many requests wait"}}, 429, Retry_After=self.server.wait)
        if fault == "loading":
            return self.send({"error": CLOSED["error"] | {"reason": "loading"}}, 503)
        if fault == "503":
            return self.send(CLOSED, 503, Retry_After="0.1")
        if fault == "500":
            return self.send({"error": {"message": "the engine is dead"}}, 500)
        if fault == "redirect":
            return self.send({}, 307, Location=self.server.elsewhere)
        self.status = 202 if fault == "accepted" else 200
        if fault == "reset":
            self.close_connection = True
            return None
        if fault == "hang":
            time.sleep(30)
        if body.get("stream"):
            return self.stream(answer, fault)
        return self.whole(answer, fault)

    def whole(self, answer: str, fault: str) -> None:
        reason = {"no finish": None, "length": "length", "abort": "abort", "abort, then stop": "abort"}.get(
            fault, "stop"
        )
        message = {"role": "assistant", "content": answer or None} | dict(
            [self.server.thought or ("role", "assistant")]
        )
        choice = {"index": 0, "message": message, "finish_reason": reason}
        usage: Any = {"prompt_tokens": 5, "completion_tokens": len(answer), "total_tokens": 5 + len(answer)}
        usage = "a few" if fault == "usage in words" else usage
        made: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1, "model": "r", "usage": usage}
        other = {"index": 1, "message": {"role": "assistant", "content": "other"}, "finish_reason": "length"}
        made["choices"] = {"empty": [], "none": None, "two choices": [other, choice]}.get(fault, [choice])
        if fault == "error event":
            made["error"] = {"message": "the engine died"}
        data = json.dumps(made).encode()
        if fault in GARBAGE:
            return self.send_bytes(GARBAGE[fault])
        if fault in ("in the content", "in a chunk", "after headers"):
            return self.send_bytes(data[: 0 if fault == "after headers" else len(data) // 2], missing=1000)
        return self.send_bytes(data, self.status)

    def stream(self, answer: str, fault: str) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if fault == "after headers":
            self.close_connection = True
            return None
        name, thought = self.server.thought or ("", "")
        for letter in thought:
            time.sleep(self.server.pace)
            self.event([{"index": 0, "delta": {name: letter}, "finish_reason": None}])
        for place, letter in enumerate(answer):
            if place and fault in ("in the content", "hang in the content", "in a chunk", "error event", *GARBAGE):
                return self.break_off(fault)
            time.sleep(self.server.pace)
            if fault == "two choices":
                self.event([{"index": 1, "delta": {"content": "x"}, "finish_reason": "length"}])
            self.event([{"index": 0, "delta": {"content": letter}, "finish_reason": None}])
            if fault == "only pings":
                for _ in range(100):  # as some servers keep a connection alive
                    self.chunk(b": ping\n\n")
                    time.sleep(0.1)
            if fault == "abort, then stop" and not place:
                self.event([{"index": 0, "delta": {}, "finish_reason": "abort"}])
        if fault != "no finish":
            reason = fault if fault in ("length", "abort") else "stop"
            self.event([] if fault in ("empty", "none") else [{"index": 0, "delta": {}, "finish_reason": reason}])
        if fault == "after the finish reason":
            self.close_connection = True
            return None
        usage: Any = {"prompt_tokens": 5, "completion_tokens": len(answer), "total_tokens": 5 + len(answer)}
        self.event([], usage="a few" if fault == "usage in words" else usage)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def break_off(self, fault: str) -> None:
        self.close_connection = True
        if fault == "hang in the content":
            time.sleep(30)
        if fault == "in a chunk":
            self.wfile.write(b'40\r\ndata: {"id": "1", "choi')
        if fault == "error event":
            self.chunk(b'data: {"error": {"message": "the engine died"}}\n\ndata: [DONE]\n\n')
        if fault in GARBAGE:
            self.chunk(b"data: " + GARBAGE[fault] + (b"" if fault == "torn character" else b"\n\n"))
            self.chunk(b"")  # as if all were well

    def event(self, choices: list[Any], **extra: Any) -> None:
        made = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "r", "choices": choices, **extra}
        self.chunk(f"data: {json.dumps(made)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
