"""SIGKILL to whoever looks after the server: nothing of it lives on, nothing says that it serves, and it starts again."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, script_environment
from serving import Home, ask, finished_run, free_port, launch, served
from test_flood import Connection, asked

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise("A server whose supervisor is killed is gone at once, and starts again"),
]

PHASES = ("starting", "checking", "open")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return finished_run(tmp_path_factory.mktemp("home"), base=False)


def reach(home: Home, supervisor: subprocess.Popen[str], phase: str) -> None:
    """Wait until the supervisor's note says so."""
    note: Path = home.run / "serve/server.json"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert supervisor.poll() is None, supervisor.communicate()
        known: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {}
        if known.get("pid") == supervisor.pid and known["state"] == phase:
            return
        time.sleep(0.02)
    raise AssertionError(f"not {phase} in time")


def state_of(home: Home) -> tuple[int, str]:
    """What `make status` says."""
    words = [sys.executable, "-m", "lockstep.supervisor", "status", *home.words]
    environment = script_environment(home.folder, PYTHONPATH=str(ROOT / "scripts"))
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return answer.returncode, answer.stdout


def living(home: Home) -> list[psutil.Process]:
    """All processes that were started for this home, whoever their parent is now; the dead that nobody reaped do not count."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LOCKSTEP_HOME") == str(home.folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_outlives_the_supervisor(home: Home, phase: str) -> None:
    port = free_port()
    supervisor = launch(home, port=port)
    reach(home, supervisor, phase)
    assert len(living(home)) > 1
    stream = None
    if phase == "open":
        stream = Connection(f"http://127.0.0.1:{port}", asked(stream=True, max_tokens=400, ignore_eos=True))
        assert stream.socket.recv(1)
    supervisor.kill()
    supervisor.communicate()
    deadline = time.monotonic() + 10
    while living(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living(home), "processes of the server live on"
    if stream:  # it ends, whole where the server was faster than the kill
        with contextlib.suppress(ConnectionError):
            stream.read()
    code, text = state_of(home)
    assert code == 3 and "no server of" in text


def test_an_evaluation_whose_engine_is_killed_says_so(home: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts/05_evaluate.py"), *home.words, "--serve.max_model_len", "512"]
    work = subprocess.Popen(
        words,
        env=script_environment(home.folder, ACCEL="cpu"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert work.stdout
    assert any(line.startswith("in lockstep") for line in work.stdout)
    for process in psutil.Process(work.pid).children(recursive=True):
        if process.cmdline()[0].startswith("VLLM::"):
            process.kill()
    complaint = work.communicate(timeout=300)[1]
    last = complaint.splitlines()[-1]
    assert work.returncode == 2 and last.startswith("error: the server for mode base ended before its work was done")
    assert "Traceback" not in complaint and not living(home)


def test_it_serves_again(home: Home) -> None:
    with served(home) as server:
        status, answer = ask(f"{server.url}/v1/chat/completions", json.loads(asked()))
        assert status == 200 and answer["choices"][0]["finish_reason"] in ("stop", "length")
