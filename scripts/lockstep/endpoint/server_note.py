"""server.json: what the supervisor of a server says of it, for all programs of this machine that want to know."""

from pathlib import Path
from typing import Any

import psutil

from lockstep.artifacts import atomic, filenames

NOTED = {"pid", "created", "since_boot", "url", "model", "mode", "served", "state", "grace"}


def served(folder: Path) -> dict[str, str]:
    """Label → digest of what the running server from `folder` loaded; empty where none runs."""
    known = read(folder)
    return dict(known["served"]) if known and running(known) else {}


def is_starting(folder: Path) -> bool:
    """Whether a server from `folder` runs and is on its way to the gate."""
    known = read(folder)
    return known is not None and known["state"] == "starting" and running(known) is not None


def write(folder: Path, state: str, **about: Any) -> None:
    """Note this process as the supervisor of a server. Raises: OSError.

    Args:
        state: starting, checking, open or not answering.
        about: `url`, `model`, `mode`, `served` (label of a folder → its digest) and `grace` (seconds).
    """
    process = psutil.Process()
    me = {"pid": process.pid, "created": process.create_time(), "since_boot": _since_boot(process)}
    atomic.write_json(folder / filenames.SERVER_NOTE, me | about | {"state": state})


def read(folder: Path) -> dict[str, Any] | None:
    """The note that lies in a server's folder; None where there is none, or a damaged one."""
    try:
        note: dict[str, Any] = atomic.read_json(folder / filenames.SERVER_NOTE)
    except (OSError, ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) and note.keys() >= NOTED else None


def _since_boot(process: psutil.Process) -> float:
    """When it was started, in seconds that no step of the clock changes."""
    return float(process.create_time() - psutil.boot_time())


def running(note: dict[str, Any]) -> psutil.Process | None:
    """The supervisor that wrote the note, unless it is gone and its number is someone else's."""
    try:
        process = psutil.Process(note["pid"])
        ours = abs(_since_boot(process) - note["since_boot"]) < 2
        return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, TypeError, ValueError):
        return None
