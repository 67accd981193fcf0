"""The supervisor with a small real server that, like vLLM, starts a process that starts a process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.programs import ROOT, script_environment
from support.serving import ask, free_port

from lockstep.endpoint import protocol, server_note

SERVER = """
import http.server, os, socket, subprocess, sys, time
port, mode = int(sys.argv[1]), sys.argv[2]
if mode == "fail":
    print("(Engine pid=1) ERROR [core.py:1] ValueError: no such architecture", flush=True)
    sys.exit(1)
if mode == "lacks a package":
    print("(Engine pid=1) ERROR [registry.py:1] subprocess.CalledProcessError: Command '[...]' returned 1", flush=True)
    print("(Engine pid=1) ERROR [registry.py:2] ModuleNotFoundError: No module named 'torchvision'", flush=True)
    sys.exit(1)
# a grandchild in a session of its own, deaf to TERM: the worst that a server can leave behind
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
child = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True); time.sleep(300)"
subprocess.Popen([sys.executable, "-c", child])
if mode == "silent":
    time.sleep(300)
while mode == "slow" and not os.path.exists("loaded"):
    time.sleep(0.05)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>" if mode == "foreign" else b'{"requests": 0}')
    def do_POST(self):
        while os.path.exists("hang"):
            time.sleep(0.05)
        body = b'{"choices": [{}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Healthy, bind_and_activate=False)
server.socket = socket.socket(fileno=int(os.environ["LOCKSTEP_LISTENER"]))
os.write(int(os.environ["LOCKSTEP_READY"]), b"1")
server.serve_forever()
"""

START = """
import sys
from pathlib import Path
from lockstep.serving import gate, gate_bounds, launch_plan, request_rules, supervisor
from lockstep.settings import cli
home, port, mode, timeout, passes, folder = sys.argv[1], *sys.argv[3:]
report = {"passed": passes == "yes", "reasons": ["the adapter is not in it"], "warnings": [], "prompts": 43,
          "logprob_gap": None, "adapter_effect": None, "stop_rate": None}
plan = launch_plan.LaunchPlan(
    command=[sys.executable, "-c", sys.argv[2], port, mode], environment={}, folder=Path(home, "outputs/r", folder),
    url=f"http://127.0.0.1:{port}/v1", model="r", route="", served={},
    claim=gate.Claim("merged", {}, None, gate_bounds.Bounds(None, None, None, 64, 512)),
    rules=request_rules.Rules("t", [], 1, 1, 1024, 1, True, True, 1, False), canary=[1],
    timing=launch_plan.Timing(float(timeout), grace=1, pause=0.3, patience=0.3), remade={}, example={"model": "r"},
)
cli.run(lambda: supervisor.start(plan, prove=lambda server, claim, tell: report))
"""


@pytest.fixture
def port() -> int:
    return free_port()


def launch(
    home: Path,
    port: int,
    mode: str = "serve",
    timeout: str = "30",
    passes: str = "yes",
    folder: str = "serve",
    **environment: str,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, str(home), SERVER, str(port), mode, timeout, passes, folder], cwd=home,
        env=script_environment(home, PYTHONPATH=str(ROOT / "scripts"), **environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL) and None,  # the tests may run under nohup
    )  # fmt: skip


def wait_until_serving(home: Path, supervisor: subprocess.Popen[str], folder: str = "serve") -> list[psutil.Process]:
    note = server_note.wait_until_open(home / "outputs/r" / folder, supervisor, timeout=60)
    assert note and note.model == "r"
    for _ in range(100):
        family = psutil.Process(supervisor.pid).children(recursive=True)
        if len(family) == 3:
            return family
        time.sleep(0.1)
    raise AssertionError("the server did not start its processes")


def gone(family: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(family, timeout=15)[1]


def supervisor_says(home: Path, action: str) -> tuple[int, str]:
    words = [sys.executable, "-m", "lockstep.serving.supervisor", action, "--run", "r"]
    environment = script_environment(home, PYTHONPATH=str(ROOT / "scripts"))
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return answer.returncode, answer.stdout + answer.stderr


def stop(home: Path) -> str:
    return supervisor_says(home, "stop")[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_process_behind(tmp_path: Path, port: int, number: int) -> None:
    supervisor = launch(tmp_path, port)
    family = wait_until_serving(tmp_path, supervisor)
    supervisor.send_signal(number)
    assert supervisor.wait(timeout=30) == (0 if number == signal.SIGTERM else 128 + number)
    assert gone(family)
    assert not (tmp_path / "outputs/r/serve/server.json").exists()


def test_stop_ends_it_and_then_finds_nothing(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port)
    family = wait_until_serving(tmp_path, supervisor)
    assert "stopped the server at" in stop(tmp_path)
    assert gone(family)
    assert "no server of outputs/r is running" in stop(tmp_path)
    supervisor.wait(timeout=10)


def test_what_both_processes_of_a_server_leave_when_they_are_killed_is_ended_by_stop(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port)
    server, *left = sorted(wait_until_serving(tmp_path, supervisor), key=lambda one: one.create_time())
    supervisor.kill()
    supervisor.wait()
    with contextlib.suppress(psutil.NoSuchProcess):  # it hears of it
        server.kill()
    assert "ended 2 processes that a server of outputs/r left behind" in stop(tmp_path)
    assert gone(left) and "no server of outputs/r is running" in stop(tmp_path)


def test_what_answers_at_its_address_and_does_not_know_its_secret_is_not_taken_for_it(
    tmp_path: Path, port: int
) -> None:
    supervisor = launch(tmp_path, port, "foreign", timeout="2")
    assert supervisor.wait(timeout=30) == 2
    assert supervisor.stderr and "was not healthy within 2 s" in supervisor.stderr.read()


def test_status_says_where_the_model_was_made_anew_and_where_notes_are_damaged(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port)
    wait_until_serving(tmp_path, supervisor)
    assert supervisor_says(tmp_path, "status")[0] == 0
    note = tmp_path / "outputs/r/serve/server.json"
    whole = note.read_text()
    note.write_text(json.dumps(json.loads(whole) | {"served": {"outputs/r/merged": "0" * 64}}))
    code, said = supervisor_says(tmp_path, "status")
    assert code == 3 and "outputs/r/merged was made anew since" in said
    note.write_text(whole)
    (tmp_path / "outputs/r/serve/gate_report.json").write_text("{")
    code, said = supervisor_says(tmp_path, "status")
    assert code == 3 and "gate_report.json is gone, or damaged" in said and "Traceback" not in said
    for text in ("[1]", "{}", "[" * 100_000, json.dumps(json.loads(whole) | {"pid": -1})):
        note.write_text(text)
        code, said = supervisor_says(tmp_path, "status")
        assert code == 3 and "no server of outputs/r is running" in said and "Traceback" not in said
        assert "does not tell: stop it with Ctrl-C" in stop(tmp_path) and supervisor.poll() is None
    note.write_text(whole)
    assert "stopped the server at" in stop(tmp_path) and supervisor.wait(timeout=10) == 0


def test_the_base_is_served_beside_the_run(tmp_path: Path, port: int) -> None:
    first, base = launch(tmp_path, port), launch(tmp_path, free_port(), folder="serve-base")
    families = [
        wait_until_serving(tmp_path, server, folder) for server, folder in ((first, "serve"), (base, "serve-base"))
    ]
    code, said = supervisor_says(tmp_path, "status")
    assert code == 0 and said.count(": open; process") == 2
    assert stop(tmp_path).count("stopped the server at") == 2
    assert all(map(gone, families)) and {first.wait(timeout=10), base.wait(timeout=10)} == {0}


def test_a_key_that_is_none_leaves_no_process_behind(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port, LOCKSTEP_API_KEY="open\nsesame")
    said = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 2 and said[1].count("\n") == 1 and "sesame" not in "".join(said)
    assert not (tmp_path / "outputs/r/serve/server.json").exists()


def test_a_second_server_of_the_run_is_refused_by_name(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port)
    wait_until_serving(tmp_path, supervisor)
    second = launch(tmp_path, port + 1)
    assert second.wait(timeout=20) == 2
    assert (
        second.stderr
        and f"already served at http://127.0.0.1:{port}/v1 by process {supervisor.pid}" in second.stderr.read()
    )
    supervisor.terminate()
    supervisor.wait(timeout=30)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("fail", "ValueError: no such architecture"),
        ("lacks a package", "ModuleNotFoundError: No module named 'torchvision'"),
    ],
)
def test_a_server_that_does_not_start_is_one_line_with_its_own_error(
    tmp_path: Path, port: int, mode: str, says: str
) -> None:
    supervisor = launch(tmp_path, port, mode)
    assert supervisor.wait(timeout=20) == 2
    assert supervisor.stderr
    said = supervisor.stderr.read()
    assert f"the server did not start: {says}" in said
    assert said.count("\n") == 1


def test_a_server_that_is_never_healthy_is_ended(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port, "silent", timeout="3")
    assert supervisor.wait(timeout=40) == 2
    assert supervisor.stderr and "was not healthy within 3 s" in supervisor.stderr.read()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_even_a_killed_supervisor_takes_its_server_along(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port)
    server = psutil.Process(supervisor.pid).children()
    wait_until_serving(tmp_path, supervisor)
    server = psutil.Process(supervisor.pid).children()
    everyone = psutil.Process(supervisor.pid).children(recursive=True)
    os.kill(supervisor.pid, signal.SIGKILL)
    assert gone(server)
    for process in everyone:
        if process.is_running():
            process.kill()


def test_while_it_loads_somebody_answers_and_a_stop_makes_the_start_fail(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port, "slow")
    assert eventually(lambda: supervisor_says(tmp_path, "status")[1].count("vLLM loads the model: ") == 1)
    for path, body in (("/health", None), ("/v1/models", None), ("/v1/chat/completions", {"messages": []})):
        status, answer = ask(f"http://127.0.0.1:{port}{path}", body)
        assert status == 503 and protocol.reason_of(answer) == protocol.LOADING
        assert "the server is loading its model: vLLM loads the model: " in answer["error"]["message"]
    assert "stopped the server at" in stop(tmp_path)
    assert supervisor.wait(timeout=10) == 75
    assert supervisor.stderr and "stopped before it had opened" in supervisor.stderr.read()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])]
    with pytest.raises(OSError):
        ask(f"http://127.0.0.1:{port}/health")


def test_what_loads_takes_the_port_over_and_nobody_is_refused_in_between(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port, "slow")
    assert eventually(lambda: supervisor_says(tmp_path, "status")[1].count("vLLM loads the model: ") == 1)
    (tmp_path / "loaded").touch()
    statuses: list[int] = []
    while 200 not in statuses:
        statuses.append(ask(f"http://127.0.0.1:{port}/health")[0])
    assert set(statuses[:-1]) <= {503}
    wait_until_serving(tmp_path, supervisor)
    assert {ask(f"http://127.0.0.1:{port}/health")[0] for _ in range(20)} == {200}
    supervisor.terminate()
    assert supervisor.wait(timeout=30) == 0


def test_what_the_gate_does_not_pass_is_never_opened(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port, passes="no")
    said, complaint = supervisor.communicate(timeout=40)
    assert supervisor.returncode == 2 and "serving " not in said
    assert complaint.startswith(
        "error: the gate stays shut: the adapter is not in it; see outputs/r/serve/gate_report.json"
    )
    assert json.loads((tmp_path / "outputs/r/serve/gate_report.json").read_text())["passed"] is False
    assert not (tmp_path / "outputs/r/serve/open").exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])]


def test_a_server_that_hangs_is_closed_until_it_answers(tmp_path: Path, port: int) -> None:
    supervisor = launch(tmp_path, port)
    wait_until_serving(tmp_path, supervisor)
    door = tmp_path / "outputs/r/serve/open"
    assert door.exists() and supervisor_says(tmp_path, "status")[0] == 0
    (tmp_path / "hang").touch()
    assert eventually(lambda: not door.exists())
    code, said = supervisor_says(tmp_path, "status")
    assert code == 3 and "r (merged) at" in said and "not answering" in said
    (tmp_path / "hang").unlink()
    assert eventually(door.exists)
    supervisor.terminate()
    supervisor.wait(timeout=30)
    assert not door.exists()
    assert supervisor_says(tmp_path, "status")[0] == 3


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("words", [[], ["--detach"]], ids=["foreground", "detached"])
def test_a_stop_reaches_a_start_that_still_looks_at_its_files(tmp_path: Path, words: list[str]) -> None:
    """Before vLLM is launched, too: here the look at the files waits for a pipe in the merged model's place."""
    merged = tmp_path / "outputs/r/merged"
    merged.mkdir(parents=True)
    os.mkfifo(merged / "manifest.json")
    place = ["--run", "r", "--serve.port", str(free_port())]
    command = [sys.executable, "-m", "lockstep.serving.supervisor", "start", *place, *words]
    starting = subprocess.Popen(
        command, cwd=tmp_path, env=script_environment(tmp_path, PYTHONPATH=str(ROOT / "scripts")), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert eventually(lambda: server_note.current(tmp_path / "outputs/r/serve") is not None)
    note = server_note.current(tmp_path / "outputs/r/serve")
    assert note and note.progress == "looking at what is to be served"
    assert "stopped the server at" in stop(tmp_path)
    said = "".join(starting.communicate(timeout=15))
    assert starting.returncode == 75 and "stopped before it had opened" in said
    assert not (tmp_path / "outputs/r/serve/server.json").exists()
