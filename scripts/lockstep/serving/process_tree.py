"""The processes of a server, down to the last: vLLM starts processes that start processes.

On Linux the supervisor is their subreaper: whoever loses its parent becomes its child, so that at the end all can be
found, stopped and reaped.
"""

import contextlib
import os
import time
from pathlib import Path

import psutil

LAST_SECONDS = 10  # that killed processes have to disappear


def end_all(grace: float) -> None:
    """TERM to this process's children, KILL after `grace` seconds to all descendants that are left, and reap them."""
    descendants = psutil.Process().children(recursive=True)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    psutil.wait_procs(descendants, timeout=grace)
    deadline = time.monotonic() + LAST_SECONDS
    while time.monotonic() < deadline:
        left = psutil.Process().children(recursive=True)
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.1)


def kill(process: psutil.Process) -> None:
    """KILL to a process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for member in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def kill_marked(variable: str, value: str) -> int:
    """KILL to all processes in whose environment a variable has a value; returns how many there were. Linux only."""
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            # a container may hold a folder of the same name
            ours = Path(f"/proc/{process.pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
            if ours and process.environ().get(variable) == value:
                process.kill()
                marked.append(process)
    psutil.wait_procs(marked, timeout=5)
    return len(marked)
