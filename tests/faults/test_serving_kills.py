"""SIGKILL to whoever looks after the server: nothing of it lives on, nothing says that it serves, and it starts again."""

import contextlib
import json
import subprocess
import sys
import time

import psutil
import pytest
from support.programs import ROOT, script_environment
from support.serving import Home, ask, free_port, launch, served
from test_flood import Connection, asked, judged

from lockstep.endpoint import server_note

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise(
        "A server whose supervisor is killed ends what it has let in and then itself, and starts again"
    ),
]

PHASES = ("starting", "checking", "open")


@pytest.fixture(scope="module")
def home(finished: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return finished.copy(tmp_path_factory.mktemp("run") / "home")


def reach(home: Home, supervisor: subprocess.Popen[str], phase: str) -> None:
    """Wait until the supervisor's note says so."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert supervisor.poll() is None, supervisor.communicate()
        note = server_note.read(home.run / "serve")
        if note and note.pid == supervisor.pid and note.state == phase:
            return
        time.sleep(0.02)
    raise AssertionError(f"not {phase} in time")


def state_of(home: Home, action: str = "status") -> tuple[int, str]:
    """What `make status` says, or `make stop`."""
    words = [sys.executable, "-m", "lockstep.serving.supervisor", action, *home.words]
    environment = script_environment(home.folder, PYTHONPATH=str(ROOT / "scripts"))
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return answer.returncode, answer.stdout


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and that nobody reaped does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def living(home: Home) -> list[psutil.Process]:
    """All processes that were started for this home, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LOCKSTEP_HOME") == str(home.folder) and alive(process):
                found.append(process)
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_outlives_the_supervisor(home: Home, phase: str) -> None:
    port = free_port()
    supervisor = launch(home, port=port)
    reach(home, supervisor, phase)
    deadline = time.monotonic() + 60
    while len(living(home)) < 2:  # it is on its way before vLLM is
        assert supervisor.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    stream = None
    if phase == "open":
        stream = Connection(f"http://127.0.0.1:{port}", asked(stream=True, max_tokens=400, ignore_eos=True))
        first = stream.socket.recv(1)
        assert first
    family = psutil.Process(supervisor.pid).children(recursive=True)
    supervisor.kill()
    supervisor.communicate()
    if stream:  # SIGTERM reaches the server, which answers to the end what it has let in
        assert judged(first + stream.read()) == "whole"
    deadline = time.monotonic() + 10
    while (left := [*filter(alive, family), *living(home)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, "processes of the server live on"
    code, text = state_of(home)
    assert code == 3 and "no server of" in text


def test_an_evaluation_whose_engine_is_killed_says_so(home: Home) -> None:
    words = [sys.executable, str(ROOT / "scripts/05_evaluate.py"), *home.words, "--serve.max_model_len", "512"]
    work = subprocess.Popen(
        words,
        env=script_environment(home.folder, ACCEL="cpu"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 300
    while not ((note := server_note.current(home.run / "serve-base")) and note.state == "open"):
        assert work.poll() is None and time.monotonic() < deadline, work.communicate()
        time.sleep(0.1)
    engine = [one for one in psutil.Process(work.pid).children(recursive=True) if one.cmdline()[0].startswith("VLLM::")]
    assert engine
    for process in engine:
        process.kill()
    complaint = work.communicate(timeout=300)[1]
    last = complaint.splitlines()[-1]
    assert work.returncode == 2 and last.startswith("error: the server for mode base ended before its work was done")
    assert "Traceback" not in complaint and not living(home) and not any(map(alive, engine))


def test_it_serves_again_and_the_engine_that_is_left_when_all_others_are_killed_is_ended_by_stop(home: Home) -> None:
    with served(home) as server:
        status, answer = ask(f"{server.url}/v1/chat/completions", json.loads(asked()))
        assert status == 200 and answer["choices"][0]["finish_reason"] in ("stop", "length")
        engine = [one for one in server.family if one.cmdline()[0].startswith("VLLM::")]
        (api,) = psutil.Process(server.supervisor.pid).children()
        server.supervisor.kill()
        server.supervisor.wait()
        api.kill()
        assert engine and all(map(alive, engine))
        assert "left behind" in state_of(home, "stop")[1]
        assert not living(home) and not any(map(alive, engine))
