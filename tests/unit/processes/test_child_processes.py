"""Who was started for a piece of work ends with whoever started it, however early that one was killed."""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lockstep.processes import child_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells")


def write_for_ever(_: Connection, file: str) -> None:
    while True:
        with Path(file).open("a") as stream:
            stream.write(".")
        time.sleep(0.01)


def begin(file: Path, at_once: bool) -> None:
    """Start a writer, and be killed: while it imports what it needs, or when it writes."""
    with child_processes.fresh(write_for_ever, str(file)):
        while not at_once and not file.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("at_once", [True, False])
def test_nobody_writes_where_the_next_run_begins(tmp_path: Path, at_once: bool) -> None:
    starter = child_processes.multiprocessing.get_context("spawn").Process(
        target=begin, args=(tmp_path / "file", at_once)
    )
    starter.start()
    starter.join()
    assert starter.exitcode == -signal.SIGKILL
    time.sleep(3 if at_once else 0.5)  # longer than an interpreter takes to start
    before = (tmp_path / "file").stat().st_size if (tmp_path / "file").exists() else 0
    time.sleep(0.3)
    assert before == ((tmp_path / "file").stat().st_size if (tmp_path / "file").exists() else 0)
    assert not at_once or before == 0
