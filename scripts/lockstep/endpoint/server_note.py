"""server.json: what the supervisor of a server says about it, to all programs on this machine."""

import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from lockstep.artifacts import atomic, filenames

POLL = 0.1  # seconds between two looks at the note

State = Literal["starting", "checking", "open", "not answering"]


class Note(BaseModel):
    """What server.json holds.

    Attributes:
        pid, created, since_boot: of the supervisor; when it was started in seconds since the epoch, and since boot.
        url: of the endpoint, ending in /v1.
        model: the name that clients send.
        mode: merged, lora or base.
        served: label of each folder that is served → its digest.
        state: starting: vLLM loads the model · checking: the gate asks · open · not answering: closed again.
        grace: seconds that requests in flight have once the server is told to stop.
        progress: how far loading or the gate is, in some words; empty where there is nothing to say.
    """

    model_config = ConfigDict(frozen=True)

    pid: int
    created: float
    since_boot: float
    url: str
    model: str
    mode: str
    served: dict[str, str]
    state: State
    grace: float
    progress: str = ""


def write(folder: Path, state: State, **about: Any) -> None:
    """Note this process as the supervisor of a server. Raises: OSError.

    Args:
        about: `url`, `model`, `mode`, `served`, `grace` and `progress` of `Note`.
    """
    process = psutil.Process()
    identity = {"pid": process.pid, "created": process.create_time(), "since_boot": _since_boot(process)}
    note = Note.model_validate({**identity, **about, "state": state})
    atomic.write_json(folder / filenames.SERVER_NOTE, note.model_dump())


def read(folder: Path) -> Note | None:
    """The note in a server's folder; None where there is none, or a damaged one."""
    try:
        return Note.model_validate_json((folder / filenames.SERVER_NOTE).read_bytes())
    except (OSError, ValueError):
        return None


def supervisor_of(note: Note) -> psutil.Process | None:
    """The process that wrote the note, unless it is gone and its number is another one's now."""
    try:
        process = psutil.Process(note.pid)
        same = abs(_since_boot(process) - note.since_boot) < 2
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, ValueError):
        return None


def current(folder: Path) -> Note | None:
    """The note of the server that runs from `folder` now; None where none does."""
    note = read(folder)
    return note if note and supervisor_of(note) else None


def served(folder: Path) -> dict[str, str]:
    """Label → digest of what the running server from `folder` loaded; empty where none runs."""
    note = current(folder)
    return dict(note.served) if note else {}


def is_starting(folder: Path) -> bool:
    """Whether a server from `folder` runs, and does not listen yet."""
    note = current(folder)
    return note is not None and note.state == "starting"


def wait_until_open(
    folder: Path,
    supervisor: "subprocess.Popen[Any]",
    timeout: float = math.inf,
    meanwhile: Callable[[], None] = lambda: None,
) -> Note | None:
    """Wait for a server that was just started.

    Args:
        folder: where its supervisor notes what it does.
        supervisor: what was started; serve_vllm.sh becomes the supervisor, so its process is that one.
        timeout: seconds.
        meanwhile: is called each time when the server is not open yet.

    Returns:
        its note once it is open; None where it ended instead.

    Raises:
        TimeoutError: it is not open in time.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended = supervisor.poll() is not None
        note = read(folder)
        if note and note.pid == supervisor.pid and note.state == "open":
            return note
        if ended:
            return None
        meanwhile()
        time.sleep(POLL)
    raise TimeoutError(f"no server is open in {folder} after {timeout:g} s")


def _since_boot(process: psutil.Process) -> float:
    """When a process was started, in seconds that no step of the clock changes."""
    return float(process.create_time() - psutil.boot_time())
