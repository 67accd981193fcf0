"""Processes that are started for a piece of work, and that must not outlive who started them (on Linux)."""

import ctypes
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# A GPU's driver must not be asked for anything before a fork, and libraries ask it while they are imported.
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Forks:
    """Processes that are forked from one which has imported libraries, instead of importing them in each.

    None of them sees what another did: the one they are forked from does nothing but import. Where there may be a GPU,
    and where forks are not safe (macOS), they are started afresh, as all others are.

    Args:
        libraries: modules that the work needs; their import begins at once, beside whatever the caller does.
    """

    def __init__(self, libraries: Sequence[str]) -> None:
        self.method = "spawn"
        if sys.platform == "linux" and not any(Path(driver).exists() for driver in DRIVERS):
            self.method = "forkserver"
            multiprocessing.get_context(self.method).set_forkserver_preload([*libraries])
            with _no_ctrl_c():
                multiprocessing.forkserver.ensure_running()


@contextmanager
def fresh(
    work: Callable[..., None], *arguments: Any, forks: Forks | None = None
) -> Iterator[tuple[BaseProcess, Connection]]:
    """A new process that runs work(sender, *arguments), and the end of a pipe that receives what it sends.

    The process is killed when the block ends.

    Args:
        work: a function at the top level of a module, as `spawn` needs it.
        forks: where the process is forked from; without them it is started afresh.
    """
    context: Any = multiprocessing.get_context(forks.method if forks else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(work, sender, *arguments), daemon=True)
    with _no_ctrl_c():
        child.start()
    sender.close()
    try:
        yield child, receiver
    finally:
        child.kill()
        child.join()


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Hold SIGINT back in this thread; a process that is started here never gets it, not even while it imports.

    A terminal sends Ctrl-C to all processes. The parent answers it, and ends the child.
    """
    # It starts with the first child otherwise, and would let SIGINT through again.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(work: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    starter = multiprocessing.parent_process()
    assert starter
    if os.getppid() == starter.pid:
        die_with_parent(starter.pid)
    elif not starter.is_alive():
        os._exit(1)
    else:  # this one was forked from another process, which lives as long as this one
        threading.Thread(target=_end_with, args=(starter.sentinel,), daemon=True).start()
    work(*arguments)


def _end_with(starter: int) -> None:
    """Wait for the end of the process that is watched through `starter`, and end this one."""
    wait([starter])
    os.kill(os.getpid(), signal.SIGTERM)


def die_with_parent(parent: int) -> None:
    """Have this process terminated when its parent ends, in whatever way.

    If the parent has ended already, this process ends at once: it must not go on writing where the next run begins.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def become_subreaper() -> None:
    """Make descendants that lose their parent children of this process, so that it can find them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
