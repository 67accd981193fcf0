"""Checkpoints of an unfinished training: sealed when whole, resumed only by the very same task."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.artifacts.manifest import FileRecord
from lockstep.errors import Terminated, UserError
from lockstep.settings import commands
from lockstep.settings.tree import flatten

NAME = re.compile(r"checkpoint-(\d+)")
PARTIAL = ".partial"  # where a checkpoint grows
NOTE = "lockstep.json"  # of a checkpoint: what Trainer does not keep


def publish(partial: Path, final: Path) -> None:
    """Seal a checkpoint with its files' hashes, and give it its name: a kill leaves all of it or nothing.

    Raises:
        OSError: the disk is full, or broken.
    """
    hashes = {name: record.model_dump() for name, record in manifest.hash_files(partial).items()}
    for path in manifest.payload(partial).values():
        atomic.fsync(path)
    atomic.write_json(partial / filenames.MANIFEST, {"files": hashes})
    atomic.fsync(partial)
    shutil.rmtree(final, ignore_errors=True)  # of an earlier try at the same step
    partial.rename(final)
    atomic.fsync(final.parent)


def numbered(folder: Path) -> dict[int, Path]:
    """Checkpoints by their step; none where the folder is missing."""
    return {int(match[1]): path for path in folder.glob("*") if (match := NAME.fullmatch(path.name))}


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints, and the one with the best held-out loss."""
    saved = numbered(folder)
    for step in sorted(saved)[:-keep]:
        if step != best:
            shutil.rmtree(saved[step])


def claim(folder: Path, task: dict[str, Any], force: bool, adapter: str = "") -> None:
    """Make the folder this task's own.

    Args:
        task: settings and inputs of the training; `close` marks it finished.
        adapter: identifies the one that is published now, if there is one.
        force: start afresh. An unfinished training that was itself started so goes on: the same
            command run again resumes.

    Raises:
        UserError: it belongs to an unfinished training with other settings or inputs.
    """
    note = folder / "task.json"
    if not note.exists():  # whose checkpoints those are, nobody knows
        _clear(folder)
    new = {"task": task, "finished": False, "forced": force, "replaces": adapter}
    earlier = _note(folder, new)
    if force and not _goes_on(earlier, task, force):
        _clear(folder)
    elif not earlier:
        raise UserError(f"{paths.label(note)} is damaged: --force starts afresh")
    elif earlier["task"] != task and not numbered(folder):  # nothing that could be lost
        _clear(folder)
    elif earlier["task"] != task:
        theirs, ours = (flatten(side["config"]) | side["inputs"] for side in (earlier["task"], task))
        changed = [key for key in sorted(theirs | ours) if theirs.get(key) != ours.get(key)]
        raise UserError(
            f"{paths.label(folder)} holds a training with other {', '.join(changed)}: set them back to "
            f"resume it, `{commands.make('train', '--force')}` starts afresh, another --run keeps both"
        )
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(note, new)


def _goes_on(note: dict[str, Any] | None, task: dict[str, Any], force: bool) -> bool:
    """Whether a training of this task goes on from the checkpoints that this note is about."""
    if note is None or note["task"] != task:
        return False
    return not force or (note["forced"] and not note["finished"])


@contextmanager
def telling_what_remains(folder: Path, task: dict[str, Any], force: bool) -> Iterator[None]:
    """Where the block is interrupted or terminated, have its message say from where the same command will go on.

    Args:
        task, force: as of `claim`.

    Raises:
        KeyboardInterrupt, Terminated: the block's own, with the whole message.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        what = str(stop) or "interrupted"
        saved = numbered(folder) if _goes_on(_note(folder), task, force) else {}
        if saved:
            rest = f"{paths.label(saved[max(saved)])} remains, and the same command goes on from there"
        else:
            rest = "there is no checkpoint yet, so the same command starts from the beginning"
        raise type(stop)(f"{what}; {rest}") from None


def _note(folder: Path, absent: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Whose the checkpoints are; None where the note is damaged."""
    file = folder / "task.json"
    if not file.exists():
        return absent
    try:
        note: dict[str, Any] = atomic.read_json(file)
        whole = {"task", "finished", "forced", "replaces"}
        sound = note.keys() == whole and note["task"].keys() == {"config", "inputs"}
        if sound:
            note["task"]["inputs"] = manifest.as_renamed(note["task"]["inputs"], folder)
    except (ValueError, AttributeError, RecursionError):
        return None
    return note if sound else None


def _clear(folder: Path) -> None:
    """Remove all checkpoints. Renamed first: a kill must not leave some of them, without the note of their task."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def prepare(folder: Path, task: dict[str, Any], force: bool, adapter: str, say: Callable[[str], None]) -> Path | None:
    """Claim the folder, and return the checkpoint to resume from; tells the user which ones are damaged."""
    claim(folder, task, force, adapter)
    checkpoint, broken = newest(folder)
    for path in broken:
        say(f"damaged, so not resumed from: {paths.label(path)}")
    return checkpoint


def close(folder: Path, task: dict[str, Any], adapter: str) -> None:
    """Note that the adapter of this task is published, so that --force starts afresh.

    An unfinished training with --force keeps its checkpoints while the adapter is still the one that it is to replace.
    """
    note = {"task": task, "finished": True, "forced": False, "replaces": ""}
    earlier = _note(folder)
    if earlier and earlier["forced"] and not earlier["finished"] and earlier["replaces"] == adapter:
        return
    if folder.exists() and earlier != note:  # a kill may have come between the adapter and this
        atomic.write_json(folder / "task.json", note)


def newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that verifies, and those after it that do not, renamed to `….broken`."""
    broken: list[Path] = []
    for _, checkpoint in sorted(numbered(folder).items(), reverse=True):
        if verifies(checkpoint):
            return checkpoint, broken
        aside = folder / f"{checkpoint.name}.broken"
        shutil.rmtree(aside, ignore_errors=True)
        broken.append(checkpoint.rename(aside))
    return None, broken


def note_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint that verifies says beside what Trainer keeps."""
    note: dict[str, Any] = atomic.read_json(checkpoint / NOTE)
    return note


def verifies(checkpoint: Path) -> bool:
    """Whether all of it is there, as it was sealed."""
    try:
        sealed = atomic.read_json(checkpoint / filenames.MANIFEST)["files"]
        return manifest.hash_files(checkpoint) == {
            name: FileRecord.model_validate(record) for name, record in sealed.items()
        }
    except (OSError, ValueError, KeyError, UserError):
        return False
