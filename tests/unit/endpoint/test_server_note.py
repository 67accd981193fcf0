"""What a supervisor notes down, and waiting for the note that says open."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.programs import ROOT

from lockstep.endpoint import server_note
from lockstep.endpoint.server_note import State

ABOUT = {
    "url": "http://127.0.0.1:1/v1",
    "model": "r",
    "mode": "merged",
    "served": {"outputs/r/merged": "00"},
    "grace": 1,
}
SUPERVISOR = """
import sys, time
from pathlib import Path
from lockstep.endpoint import server_note
about = dict(url="http://127.0.0.1:1/v1", model="r", mode="merged", served={}, grace=1)
for state in sys.argv[2:]:
    server_note.write(Path(sys.argv[1]), state, **about)
    time.sleep(0.3)
if "open" in sys.argv:
    time.sleep(60)
"""


def supervisor(folder: Path, *states: State) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder), *states], env=environment)


def test_a_note_is_its_process(tmp_path: Path) -> None:
    assert server_note.read(tmp_path) is None and server_note.current(tmp_path) is None
    server_note.write(tmp_path, "starting", **ABOUT)
    note = server_note.current(tmp_path)
    assert note and (note.pid, note.state, note.model) == (os.getpid(), "starting", "r")
    assert server_note.is_starting(tmp_path) and server_note.served(tmp_path) == ABOUT["served"]
    server_note.write(tmp_path, "open", **ABOUT)
    assert not server_note.is_starting(tmp_path)
    file = tmp_path / "server.json"
    whole = json.loads(file.read_text())
    for change in ({"since_boot": 1.0}, {"pid": -1}, {"pid": 2**40}):  # its number is another one's, or no one's
        file.write_text(json.dumps(whole | change))
        assert server_note.read(tmp_path) and server_note.current(tmp_path) is None
        assert server_note.served(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "[" * 100_000, '{"pid": "x"}'])
def test_a_damaged_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    assert server_note.read(tmp_path) is None


def test_waiting_ends_when_the_supervisor_that_was_started_says_open(tmp_path: Path) -> None:
    server_note.write(tmp_path, "open", **ABOUT)  # by another process: this one
    looks: list[float] = []
    child = supervisor(tmp_path, "starting", "checking", "open")
    try:
        note = server_note.wait_until_open(tmp_path, child, 60, lambda: looks.append(time.monotonic()))
        assert note and (note.pid, note.state) == (child.pid, "open") and len(looks) > 2
    finally:
        child.kill()
        child.wait()


def test_waiting_ends_with_the_process_or_the_time(tmp_path: Path) -> None:
    child = supervisor(tmp_path, "starting", "checking")
    assert server_note.wait_until_open(tmp_path, child, 60) is None
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as silent:
        with pytest.raises(TimeoutError):
            server_note.wait_until_open(tmp_path, silent, 0.3)
        silent.kill()
