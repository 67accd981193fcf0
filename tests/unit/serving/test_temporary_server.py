"""A server for as long as it is needed, with a small program in place of vLLM and its supervisor."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import homes
from support.programs import ROOT

from lockstep.artifacts import atomic
from lockstep.endpoint import server_note
from lockstep.errors import UserError
from lockstep.serving import temporary_server

SUPERVISOR = """#!{python}
import sys, time
from pathlib import Path
from lockstep.endpoint import server_note
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, mode = Path({folder!r}), words["--serve.mode"]
if words["--run"] == "broken":
    sys.exit("error: the gate stays shut: other weights")
about = dict(url=f"http://127.0.0.1:{{words['--serve.port']}}/v1", model="r", mode=mode, served={{}}, grace=1)
for state in ("starting", "checking", "open"):
    server_note.write(folder, state, **about)
    time.sleep(0.3)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run's server; what would start vLLM is the program above."""
    homes.settle(monkeypatch, tmp_path)
    folder = tmp_path / "outputs/r/serve"
    folder.mkdir(parents=True)
    script = tmp_path / "serve_vllm.sh"
    script.write_text(SUPERVISOR.format(python=sys.executable, folder=str(folder)))
    script.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts"))
    monkeypatch.setattr(temporary_server, "SCRIPT", script)
    report = {"prompts": 43, "logprob_gap": 0.001, "adapter_effect": 1.0, "stop_rate": None}
    atomic.write_json(folder / "gate_report.json", report)
    return folder


def test_it_is_there_as_long_as_the_block(folder: Path) -> None:
    told: list[str] = []
    with temporary_server.served(("--run", "r"), "merged", told.append) as note:
        supervisor = psutil.Process(note.pid)
        assert note.state == "open" and note.url.startswith("http://127.0.0.1:") and note.mode == "merged"
        assert server_note.current(folder) == note
    assert not supervisor.is_running()
    command, outcome = told
    assert command.startswith("$ ") and "--serve.mode merged --serve.port" in command
    assert outcome.startswith(
        "in lockstep: 43 golden prompts are the tokens of training, log-probabilities within 0.0010"
    )


def test_one_that_does_not_start_is_an_error(folder: Path) -> None:
    with (
        pytest.raises(UserError, match="the server for mode lora did not start"),
        temporary_server.served(("--run", "broken"), "lora", lambda line: None),
    ):
        raise AssertionError("the block must not begin")


def test_work_that_fails_because_the_server_is_gone_says_so(folder: Path) -> None:
    with (
        pytest.raises(UserError, match="mode merged ended before its work was done") as caught,
        temporary_server.served(("--run", "r"), "merged", lambda line: None) as note,
    ):
        server = psutil.Process(note.pid)
        server.kill()
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        raise UserError("no server answers")
    assert str(caught.value.__cause__) == "no server answers"


def test_an_error_of_the_work_itself_stays_what_it_is(folder: Path) -> None:
    with (
        pytest.raises(UserError, match=r"^the disk is full$"),
        temporary_server.served(("--run", "r"), "merged", lambda line: None),
    ):
        raise UserError("the disk is full")
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(folder.parents[2]) in " ".join(p.info["cmdline"] or [])
    ]


def test_the_ports_it_gives_are_free() -> None:
    command = [sys.executable, "-c", "import socket, sys; socket.create_server(('127.0.0.1', int(sys.argv[1])))"]
    subprocess.run([*command, str(temporary_server.free_port())], check=True)
