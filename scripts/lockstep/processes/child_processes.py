"""Processes that are started for a piece of work, and that must not outlive who started them (on Linux)."""

import ctypes
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


@contextmanager
def fresh(work: Callable[..., None], *arguments: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """A new process that runs work(sender, *arguments), and the end of a pipe that receives what it sends.

    The process is killed when the block ends.

    Args:
        work: a function at the top level of a module, as `spawn` needs it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(os.getpid(), work, sender, *arguments), daemon=True)
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


def _run(parent: int, work: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    work(*arguments)


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
