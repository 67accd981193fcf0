"""Servers as other people start them: vLLM and transformers' own, on a folder; and a proxy before one that lies."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.programs import free_port

Change = Callable[[str, Any], Any]  # (path, JSON) → what goes on instead


@contextmanager
def vllm(folder: Path, log: Path, *flags: str) -> Iterator[str]:
    """vLLM on a folder, without anything of ours; its address, without /v1."""
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1",
        "--enforce-eager", "--dtype", "bfloat16", "--max-num-seqs", "8", "--kv-cache-memory-bytes", "100000000",
    ]  # fmt: skip
    yield from _started([*command, *flags], log, "/health")


@contextmanager
def transformers(folder: Path, log: Path, *flags: str) -> Iterator[str]:
    """`transformers serve` on a folder; its address, without /v1."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1"]
    yield from _started([*command, "--device", "cpu", *flags], log, "/health")


def _started(command: list[str], log: Path, route: str) -> Iterator[str]:
    port = free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, "--port", str(port)], stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=log.parent
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 900  # machines may be busy
        while not _answers(url + route):
            assert server.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-2000:]
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def lying(
    url: str, question: Change | None = None, answer: Change | None = None, closed: tuple[str, ...] = ()
) -> Iterator[str]:
    """A proxy that changes what goes to a server or what comes from it; its own address.

    Args:
        closed: routes that it does not pass on.
    """  # fmt: skip

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on(None)

        def do_POST(self) -> None:
            self._pass_on(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _pass_on(self, body: Any) -> None:
            if body is not None and question:
                body = question(self.path, body)
            data = None if body is None else json.dumps(body).encode()
            asked = urllib.request.Request(url + self.path, data, {"Content-Type": "application/json"})
            try:
                if self.path in closed:
                    status, content = 404, b'{"error": {"message": "closed"}}'
                else:
                    with urllib.request.urlopen(asked, timeout=300) as response:
                        status, content = response.status, response.read()
                    if answer:
                        content = json.dumps(answer(self.path, json.loads(content))).encode()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        proxy.server_close()
