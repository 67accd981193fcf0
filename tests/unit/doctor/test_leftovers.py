"""What killed processes leave: real processes that are killed and stopped, and what they wrote."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.programs import ROOT

from lockstep.artifacts import filenames
from lockstep.doctor import leftovers

# A stage that never ends, as others start it.
WRITER = """
import sys, time
from pathlib import Path
from lockstep.artifacts.stage import Stage

with Stage("data", Path(sys.argv[1]), {}, []).writing() as work:
    (work / "half").write_bytes(b"0" * 2**20)
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    (folder / "r").mkdir(parents=True)
    return folder


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A stage while it writes a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")},
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def codes(outputs: Path, shared: Path | None = None) -> dict[str, str]:
    """Code → text of what is found in some outputs."""
    look = leftovers.look((outputs,), shared or outputs / "none")
    return {finding.code: finding.text for finding in look.findings}


def test_a_killed_stage_leaves_a_lock_and_a_half_made_folder_and_a_running_one_none(outputs: Path) -> None:
    with writing(outputs / "r/data") as process:
        assert codes(outputs) == {}
        os.kill(process.pid, signal.SIGSTOP)
        wait_for_state(process.pid, "T")
        stopped = codes(outputs)
        assert list(stopped) == ["stale_lock"]
        assert f"locked by process {process.pid}, which is stopped" in stopped["stale_lock"]
    left = codes(outputs)
    assert sorted(left) == ["half_made", "stale_lock"]
    assert "1 MiB" in left["half_made"] and "run `make data` for the run r again" in left["half_made"]
    assert "which was killed while it wrote" in left["stale_lock"]


def wait_for_state(process: int, letter: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == letter:
            return
        time.sleep(0.01)
    raise AssertionError(f"process {process} is not in state {letter}")


def test_the_lock_of_a_finished_stage_is_no_fault(outputs: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (outputs / "r/.data.lock").write_text(f"process {ended.pid} on {os.uname().nodename}\n")
    (outputs / "r/data").mkdir()
    (outputs / "r/data" / filenames.MANIFEST).write_text("{}")
    assert codes(outputs) == {}


def test_a_folder_that_was_killed_while_it_was_replaced_stops_the_next_stage(outputs: Path) -> None:
    (outputs / "r/.adapter.replaced").mkdir()
    (finding,) = leftovers.look((outputs,), outputs / "none").findings
    assert (finding.code, finding.stops) == ("half_made", True)
    assert "what was there stands in .adapter.replaced" in finding.what and "make train" in finding.next


def test_the_note_of_a_dead_server_and_processes_that_it_left(outputs: Path) -> None:
    serve = outputs / "r" / filenames.SERVE
    serve.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    (serve / filenames.SERVER_NOTE).write_text(json.dumps({"pid": ended.pid, "url": "http://127.0.0.1:1/v1"}))
    assert list(codes(outputs)) == ["dead_server"]
    marked = os.environ | {"LOCKSTEP_RULES": str(serve / filenames.RULES)}
    with subprocess.Popen(["sleep", "60"], env=marked) as orphan:
        deadline = time.monotonic() + 5
        while list(codes(outputs)) != ["orphan_server"] and time.monotonic() < deadline:
            time.sleep(0.05)
        (text,) = codes(outputs).values()
        orphan.kill()
    assert "1 processes of a killed server" in text and "make stop ARGS='--run r'" in text


def test_shared_memory_that_nobody_has_open(outputs: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    segment = shared / "psm_1234abcd"
    segment.write_bytes(b"\0" * 2**21)
    with (shared / "psm_untouched").open("wb") as sparse:
        sparse.truncate(2**30)
    (shared / "another programs").write_bytes(b"\0" * 2**21)
    with segment.open("rb"):
        assert codes(outputs, shared) == {}
    (text,) = codes(outputs, shared).values()
    assert f"run `rm {segment}`" in text and text.startswith("1 segments")
