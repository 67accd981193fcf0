"""What can be done to a server by the folder that it serves from: one at a time, its state, its end, what it left."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.endpoint import address, protocol, server_note
from lockstep.errors import UserError
from lockstep.serving import gate_report, process_tree
from lockstep.settings import commands

NOT_RUNNING = 3  # exit code of `status`: nothing that is in lockstep is served
MARGIN = 15  # seconds beside its own grace that a server has to end in


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a server's folder for as long as the block lasts. Raises UserError where another process holds it."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        note = server_note.read(folder)
        where = f" at {note.url} by process {note.pid}" if note else ""
        raise UserError(
            f"{paths.label(folder.parent)} is already served{where}: run `{stop_command(folder)}` first"
        ) from error
    try:
        yield
    finally:
        lock.release()


def already(folder: Path) -> str:
    """That a run is served; to be completed with where."""
    return f"{paths.label(folder.parent)} is already served"


def stop_command(folder: Path) -> str:
    """What stops the server of a folder, whichever run the present program is about."""
    return commands.make("stop", "--run", folder.parent.name)


def running() -> list[tuple[Path, server_note.Note]]:
    """(folder, note) of the servers that run now, of all runs."""
    folders = sorted(paths.OUTPUTS.glob("*")) if paths.OUTPUTS.is_dir() else []
    notes = [(run / name, server_note.current(run / name)) for run in folders for name in address.FOLDERS]
    return [(folder, note) for folder, note in notes if note]


def others(run_dir: Path) -> str:
    """Which other runs are served, and how each is stopped; empty where none is."""
    lines = [
        f"{note.model} ({note.mode}) of {paths.label(folder.parent)} runs at {note.url}: `{stop_command(folder)}`"
        for folder, note in running()
        if folder.parent != run_dir
    ]
    return "; ".join(lines)


def clear(folder: Path) -> str:
    """`end_leftovers`, for who does not hold the folder. Raises UserError where a server runs there."""
    if not folder.exists():
        return ""
    with alone(folder):
        return end_leftovers(folder)


def end_leftovers(folder: Path) -> str:
    """Kill what a server of this folder has left behind; returns what to tell the user, nothing where nothing was left.

    A server whose supervisor and API server were both killed leaves an engine that waits for ever and holds its memory.
    That is known by its environment.
    """
    if sys.platform != "linux":
        return ""
    count = process_tree.kill_marked(protocol.RULES, str(folder / filenames.RULES))
    return f"ended {count} processes that a server of {paths.label(folder.parent)} left behind" if count else ""


def stop(folder: Path) -> str:
    """Stop the server that serves from a folder; returns what to tell the user, nothing where there is none.

    Raises:
        UserError: it is another user's, or its note is damaged.
    """
    note = server_note.read(folder)
    supervisor = note and server_note.supervisor_of(note)
    if not note or not supervisor:
        try:
            return clear(folder)
        except UserError as error:
            raise UserError(
                f"{paths.label(folder.parent)} is served, or about to be, by a process that "
                f"{paths.label(folder / filenames.SERVER_NOTE)} does not tell: stop it with Ctrl-C"
            ) from error
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.terminate()
    except psutil.AccessDenied as error:
        raise UserError(f"process {note.pid} at {note.url} is another user's: it is not yours to stop") from error
    deadline = time.monotonic() + note.grace + MARGIN
    while time.monotonic() < deadline:
        if not server_note.supervisor_of(note):
            return f"stopped the server at {note.url}"
        time.sleep(0.1)
    process_tree.kill(supervisor)
    return f"killed the server at {note.url}, which did not stop by itself"


def status(folder: Path) -> tuple[int, str]:
    """(exit code, what to tell the user) about the server that serves from a folder; no words where there is none."""
    note = server_note.current(folder)
    if not note:
        return NOT_RUNNING, ""
    minutes = (time.time() - note.created) / 60
    text = f"{note.model} ({note.mode}) at {note.url}: {note.state}; process {note.pid}, {minutes:.0f} min"
    if note.progress:
        text += f"\n{note.progress}"
    if note.state != "open":
        return NOT_RUNNING, f"{text}; its log is {paths.label(folder / filenames.SERVER_LOG)}"
    report = gate_report.read(folder)
    if not report:
        return NOT_RUNNING, f"{text}\n{paths.label(folder / filenames.GATE_REPORT)} is gone, or damaged"
    if anew := gate_report.replaced(note.served):
        return NOT_RUNNING, f"{text}\n{', '.join(anew)} was made anew since: `{stop_command(folder)}`, and serve again"
    return 0, f"{text}\nin lockstep: {gate_report.summary(report)}"
