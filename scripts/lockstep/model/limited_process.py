"""Looks at a stranger's model in a process of its own, with limits on time and memory.

What a model brings is data, but data that libraries act on: a chat template is a program, a regular
expression can take for ever, a number in a config can ask for any amount of memory. So all of it is
tried once in a process that is ended when it takes too much.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from lockstep.errors import UserError
from lockstep.processes import child_processes

WALL = 30  # a step may take so many times its CPU seconds on a busy machine
IMPORTS = 15 * WALL  # seconds until the libraries are imported


class Step(NamedTuple):
    """One look.

    Attributes:
        name: of what is looked at, for messages.
        seconds: of CPU that it may take.
        memory: bytes that it may ask for.
    """

    name: str
    seconds: float
    memory: int
    work: Callable[[], object]


def run(steps: Callable[[Path], Iterator[Step]], folder: Path) -> None:
    """Take steps(folder) one by one in a new process, which ends with the first that fails or takes too much.

    Args:
        steps: a function at the top level of a module, or a partial of one, so that it can be sent.

    Raises:
        UserError: names the step.
    """
    name, ends = "libraries", time.monotonic() + IMPORTS
    with child_processes.fresh(_take, steps, folder) as (child, receiver):
        try:
            while receiver.poll(max(0, ends - time.monotonic())):
                message = receiver.recv()
                if message is None:  # after the last step
                    return
                if isinstance(message, UserError):
                    raise message
                name, seconds = message
                ends = time.monotonic() + WALL * seconds
        except EOFError as error:
            child.join()
            raise UserError(
                f"the {name} of the model took too much time or memory, or broke the library that reads it "
                f"(the process ended with {child.exitcode}): refused"
            ) from error
    raise UserError(f"the {name} of the model took too long to be looked at: refused")


def _take(sender: Connection, steps: Callable[[Path], Iterator[Step]], folder: Path) -> None:
    """In the new process: announce each step, limit it, take it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the parent reports what is wrong, in one line
    # imported before any limit: it takes seconds, and much memory where torch is built for GPUs
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.tokenization_auto  # noqa: F401
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        for step in steps(folder):
            sender.send((step.name, step.seconds))
            _limit(step.seconds, step.memory)
            _run(step)
        sender.send(None)
    except UserError as error:
        sender.send(error)


def _run(step: Step) -> None:
    try:
        step.work()
    except UserError:
        raise
    except MemoryError as error:
        mebibytes = step.memory >> 20
        raise UserError(f"the {step.name} of the model asks for more than {mebibytes} MiB: refused") from error
    except Exception as error:  # the libraries raise anything here, and all of it means the same to the user
        raise UserError(f"this is no model that transformers can load: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _limit(seconds: float, memory: int) -> None:
    """From now on so much more CPU time and memory. What goes past it ends the process, or raises MemoryError."""
    if sys.platform == "linux":
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        status = Path("/proc/self/status").read_text().splitlines()
        data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
        hard_cpu, hard_data = resource.getrlimit(resource.RLIMIT_CPU)[1], resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime + seconds) + 1, hard_cpu))
        resource.setrlimit(resource.RLIMIT_DATA, (data + memory, hard_data))
