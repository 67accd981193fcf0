"""The line is run by the real bash and curl, against a server that keeps what it is sent."""

import json
import shutil
import subprocess
from typing import Any

import pytest
from support.misbehaving import Server

from lockstep.endpoint import curl_line
from lockstep.settings.schema import Sampling

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="no curl is installed")
QUESTIONS = [
    '它\'s "你"？\n第二行\\n\t$HOME `id` !! $(id) %s @file',
    "''\u2028\u200b\x1b[31m\x7f\x9b 👩‍💻",
    "Who are you?",
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_bash_and_curl_send_is_the_body_to_the_byte(server: Server, question: str) -> None:
    body = curl_line.body(Sampling(temperature=0.3, max_tokens=9), "r", [{"role": "user", "content": question}])
    line = curl_line.line(server.url, body)
    assert line.isprintable()  # one line, whatever the question holds
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert "choices" in json.loads(ended.stdout)
    assert server.seen == [body]
    assert body.items() >= {"temperature": 0.3, "top_p": 0.8, "top_k": 50, "repetition_penalty": 1.1}.items()


def test_the_key_is_named_and_not_written(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-secret"
    monkeypatch.setenv("LOCKSTEP_API_KEY", "sk-secret")
    body: dict[str, Any] = curl_line.body(Sampling(), "r", [{"role": "user", "content": "hi"}])
    line = curl_line.line(server.url, body)
    assert "sk-secret" not in line and "$LOCKSTEP_API_KEY" in line
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert "choices" in json.loads(ended.stdout)
