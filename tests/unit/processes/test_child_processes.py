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


def begin(file: Path, at_once: bool, forked: bool) -> None:
    """Start a writer, and be killed: while it imports what it needs, or when it writes."""
    forks = child_processes.Forks(["json"]) if forked else None
    with child_processes.fresh(write_for_ever, str(file), forks=forks):
        while not at_once and not file.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("forked", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_nobody_writes_where_the_next_run_begins(tmp_path: Path, at_once: bool, forked: bool) -> None:
    starter = child_processes.multiprocessing.get_context("spawn").Process(
        target=begin, args=(tmp_path / "file", at_once, forked)
    )
    starter.start()
    starter.join()
    assert starter.exitcode == -signal.SIGKILL
    time.sleep(3 if at_once else 0.5)  # longer than an interpreter takes to start
    before = (tmp_path / "file").stat().st_size if (tmp_path / "file").exists() else 0
    time.sleep(0.3)
    assert before == ((tmp_path / "file").stat().st_size if (tmp_path / "file").exists() else 0)
    assert not at_once or before == 0


def tell_libraries(sender: Connection) -> None:
    sender.send((os.getpid(), os.getppid(), "wave" in sys.modules, sorted(vars(sys.modules["wave"]).get("marks", []))))
    sys.modules["wave"].marks = ["of an earlier process"]


def start_two(sender: Connection) -> None:
    forks = child_processes.Forks(["wave"])
    for _ in range(2):
        with child_processes.fresh(tell_libraries, forks=forks) as (child, receiver):
            sender.send(receiver.recv())
            child.join()


@pytest.mark.skipif(any(Path(name).exists() for name in child_processes.DRIVERS), reason="there is a GPU")
def test_forks_have_the_libraries_and_nothing_of_each_other() -> None:
    context = child_processes.multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    starter = context.Process(target=start_two, args=(sender,))  # a process has one server of forks: this one is taken
    starter.start()
    (first, server, *rest), (second, same, *again) = receiver.recv(), receiver.recv()
    starter.join()
    assert rest == again == [True, []]
    assert first != second and server == same != starter.pid


def test_where_a_gpu_may_be_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_processes, "DRIVERS", (os.devnull,))
    assert child_processes.Forks(["wave"]).method == "spawn"
