"""The real vLLM: same tokens, same answers, and nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from conftest import ROOT, script_environment

pytestmark = pytest.mark.e2e

MESSAGES = [
    [{"role": "user", "content": "你是谁？ 🙂"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": " spaces around \n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "答"},
        {"role": "user", "content": "<|im_end> {{ x }}"},
    ],
    [{"role": "user", "content": "译\n\n### 输入:\n人工智能"}],
]


def stages(home: Path, *extra: str) -> tuple[str, ...]:
    """A finished tiny run with its dequantized base; returns the settings that all stages share."""
    tiny.model(home / "tiny")
    tiny.rows(home / "rows.jsonl", 40)
    words = ("--run", "r", "--model.source", "local", "--model.path", str(home / "tiny"), "--model.name", "tiny",
             "--data.train_file", str(home / "rows.jsonl"), *extra)  # fmt: skip
    train = ("--train.max_steps", "6", "--train.learning_rate", "2e-2", "--lora.r", "8")
    for script, more in (("00_download_model.py", ()), ("01_data_collator.py", ()), ("02_train_qlora.py", train),
                         ("03_merge_lora.py", ()), ("03_merge_lora.py", ("--base",))):  # fmt: skip
        command = [sys.executable, str(ROOT / "scripts" / script), *words, *more]
        subprocess.run(command, env=script_environment(home), check=True, capture_output=True)
    return words


@contextmanager
def served(home: Path, *words: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(ROOT / "scripts/serve_vllm.sh"), *words, "--serve.port", str(port), "--serve.max_model_len", "512"],
        env=script_environment(home, PYTHON=sys.executable, ACCEL="cpu"), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert server.stdout
    try:
        assert any(line.startswith("serving r at") for line in server.stdout), (
            home / "outputs/r/serve/server.log"
        ).read_text()
        family = psutil.Process(server.pid).children(recursive=True)
        yield f"http://127.0.0.1:{port}"
        os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        assert server.wait(timeout=60) == 130
        assert not psutil.wait_procs(family, timeout=10)[1]
    finally:
        server.kill()


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.parametrize("template_name", ["model", "instruction_zh"])
def test_the_server_sees_the_tokens_of_training(tmp_path: Path, template_name: str) -> None:
    words = stages(tmp_path, "--data.template", template_name, "--data.system_prompt", "你是 'x'.")
    contract = json.loads((tmp_path / "outputs/r/merged/contract.json").read_text(encoding="utf-8"))
    assert len(contract["conversations"]) >= 30
    modes = {"merged": "r", "lora": "r"} if template_name == "model" else {"merged": "r"}
    for mode, model in modes.items():
        with served(tmp_path, *words, "--serve.mode", mode) as url:
            for one in contract["conversations"]:
                asked = {name: one[name] for name in ("messages", "tools") if name in one}
                assert post(f"{url}/tokenize", {"model": model, **asked})["tokens"] == one["prompt_ids"], one["name"]
            body = {"model": model, "messages": MESSAGES[0], "temperature": 0, "max_tokens": 8}
            assert post(f"{url}/v1/chat/completions", body)["choices"][0]["finish_reason"] in ("stop", "length")
