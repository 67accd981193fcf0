"""Processes that are started for a piece of work, and what Linux can do about those whose parent is gone."""

import ctypes
import multiprocessing
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
    """A new process that runs work(sender, *arguments), and the end of a pipe where it answers. It ends with the block.

    Args:
        work: a function of a module.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(os.getpid(), work, sender, *arguments), daemon=True)
    child.start()
    sender.close()
    try:
        yield child, receiver
    finally:
        child.kill()
        child.join()


def _run(parent: int, work: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and ends this process
    die_with_parent(parent)
    work(*arguments)


def die_with_parent(parent: int) -> None:
    """SIGTERM to this process when its parent ends, in whatever way. Where it has ended already, this process does, too:
    nobody must go on writing where the next run begins."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def become_subreaper() -> None:
    """Descendants that lose their parent become children of this process, where they can be found."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
