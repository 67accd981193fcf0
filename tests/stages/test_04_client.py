"""Stage 04 against a small OpenAI-compatible server that can break off, refuse and want a key."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from conftest import Run


class Server(ThreadingHTTPServer):
    """Answers with the last message turned round; `mode` says how."""

    mode = "good"
    key = ""
    seen: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def send(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if not self.path.startswith("/v1/"):
            return self.send({"detail": "Not Found"}, 404)
        return self.send({"object": "list", "data": [{"id": name, "object": "model"} for name in ("r", "r-base")]})

    def do_POST(self) -> None:
        if not self.path.startswith("/v1/"):
            return self.send({"detail": "Not Found"}, 404)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.send({"error": {"message": "Unauthorized"}}, 401)
        if body["model"] not in ("r", "r-base"):
            return self.send({"error": {"message": "no such model"}}, 404)
        question = body["messages"][-1]["content"]
        if "too long" in question:
            return self.send({"error": {"message": "maximum context length is 16"}}, 400)
        answer = question[::-1]
        reason = {"cut": None, "length": "length"}.get(self.server.mode, "stop")
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": reason}
            return self.send({"id": "1", "object": "chat.completion", "created": 1, "model": "r", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for letter in answer:
            self.event({"delta": {"content": letter}, "finish_reason": None})
        if reason:
            self.event({"delta": {}, "finish_reason": reason})
            self.wfile.write(b"data: [DONE]\n\n")
        return None

    def event(self, choice: dict[str, Any]) -> None:
        chunk = {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "r",
            "choices": [{"index": 0, **choice}],
        }
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.seen = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def ask(stage: Run, server: Server, *words: str, **extra: str) -> CompletedProcess[str]:
    # a proxy that leads nowhere: loopback must not go through it
    return stage(
        "04_client_openai.py", "--run", "r", "--base-url", server.url, *words, HTTP_PROXY="http://127.0.0.1:9", **extra
    )


def error(answer: CompletedProcess[str]) -> str:
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_one_question_with_all_sampling_settings(stage: Run, server: Server, stream: tuple[str, ...]) -> None:
    answer = ask(
        stage,
        server,
        "你是谁？",
        "--input",
        "答",
        "--system",
        "s",
        "--sampling.top_k",
        "7",
        "--sampling.seed",
        "3",
        *stream,
    )
    assert (answer.returncode, answer.stdout) == (0, "答\n？谁是你\n")
    (body,) = server.seen
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "你是谁？\n答"}]
    wanted = {
        "model": "r",
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "repetition_penalty": 1.1,
        "max_tokens": 256,
        "seed": 3,
    }
    assert body.items() >= (wanted | {"presence_penalty": 0.0, "frequency_penalty": 0.0}).items()


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_a_part_of_an_answer_is_never_taken_for_a_whole_one(
    stage: Run, server: Server, stream: tuple[str, ...]
) -> None:
    server.mode = "cut"
    assert "the answer broke off" in error(ask(stage, server, "hello", *stream))
    server.mode = "length"
    answer = ask(stage, server, "hello", *stream)
    assert answer.returncode == 0 and "[cut off at 256 tokens" in answer.stderr


def test_what_can_go_wrong_is_one_line(stage: Run, server: Server) -> None:
    assert "it serves r, r-base" in error(ask(stage, server, "hi", "--model", "gpt-4"))
    assert "the server refused (400): " in error(ask(stage, server, "this is too long"))
    assert "give one of" in error(ask(stage, server))
    assert "belong to a single question" in error(ask(stage, server, "--chat", "--curl"))
    assert "ends in /v1" in error(ask(stage, server, "hi", "--base-url", server.url.removesuffix("/v1") + "/v2"))
    assert "--batch needs --output" in error(ask(stage, server, "--batch", "x.jsonl"))
    server.key = "secret"
    assert "set LOCKSTEP_API_KEY" in error(ask(stage, server, "hi"))
    assert ask(stage, server, "hi", LOCKSTEP_API_KEY="secret").returncode == 0
    down = stage("04_client_openai.py", "hi", "--base-url", "http://127.0.0.1:9/v1")
    assert "no server answers at http://127.0.0.1:9/v1" in error(down)


def test_a_batch_keeps_its_order_and_each_row_has_its_answer_or_its_error(
    stage: Run, server: Server, tmp_path: Path
) -> None:
    rows = [
        {"instruction": f"question {n}", "input": "too long" if n == 3 else "", "output": str(n)} for n in range(20)
    ]
    rows.append({"messages": [{"role": "user", "content": "last"}]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n", encoding="utf-8")
    answer = ask(stage, server, "--batch", "in.jsonl", "--output", "out/answers.jsonl", "--concurrency", "4")
    assert "1 of 21 rows have no answer" in error(answer)
    assert "20 answers, 1 errors" in answer.stdout
    records = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["messages"][-1]["content"].split("\n")[0] for record in records] == [
        f"question {n}" for n in range(20)
    ] + ["last"]
    assert [n for n, record in enumerate(records) if "error" in record] == [3]
    assert (
        records[5]["answer"] == "5 noitseuq"
        and records[5]["finish_reason"] == "stop"
        and records[5]["reference"] == "5"
    )


def test_a_batch_that_cannot_be_read_or_answered_writes_nothing(stage: Run, server: Server, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"instruction": "a"}\n{"no": 1}\n')
    assert "in.jsonl:2 has neither" in error(ask(stage, server, "--batch", "in.jsonl", "--output", "out.jsonl"))
    assert "cannot read absent" in error(ask(stage, server, "--batch", "absent", "--output", "out.jsonl"))
    (tmp_path / "in.jsonl").write_text('{"instruction": "a"}\n')
    assert "no model 'x'" in error(ask(stage, server, "--batch", "in.jsonl", "--output", "out.jsonl", "--model", "x"))
    assert "must be a new file" in error(ask(stage, server, "--batch", "in.jsonl", "--output", "in.jsonl"))
    assert "must be a new file" in error(ask(stage, server, "--batch", "in.jsonl", "--output", str(tmp_path)))
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "holds no rows" in error(ask(stage, server, "--batch", "empty.jsonl", "--output", "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def test_the_curl_line_sends_the_same_body(stage: Run, server: Server) -> None:
    import subprocess

    line = ask(stage, server, "它's 你？", "--curl").stdout
    assert not server.seen
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"] == "？你 s'它"
    assert ask(stage, server, "它's 你？").returncode == 0
    assert server.seen[0] == server.seen[1]


def test_chat_keeps_its_history_and_a_failed_turn_leaves_it(stage: Run, server: Server, tmp_path: Path) -> None:
    import subprocess
    import sys

    from conftest import ROOT, script_environment

    talk = subprocess.run(
        [sys.executable, str(ROOT / "scripts/04_client_openai.py"), "--run", "r", "--base-url", server.url, "--chat"],
        input="ab\n\ntoo long\ncd\n", env=script_environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert talk.returncode == 0, talk.stderr
    assert "ba" in talk.stdout and "dc" in talk.stdout and "refused (400)" in talk.stderr
    assert [m["content"] for m in server.seen[-1]["messages"]] == ["ab", "ba", "cd"]
