"""Checkpoints of an unfinished training: sealed when whole, resumed only by the very same task."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from lockstep import manifest, paths
from lockstep.config import flatten
from lockstep.errors import UserError
from lockstep.manifest import FileRecord

NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path) -> None:
    """Note every file's hash, last: a checkpoint without this note was cut off."""
    hashes = {name: record.model_dump() for name, record in manifest.hash_files(folder).items()}
    manifest.write_json(folder / manifest.FILE, {"files": hashes})


def claim(folder: Path, task: dict[str, Any], force: bool) -> None:
    """Make the folder this task's own.

    Args:
        task: settings and inputs of the training; `close` marks it finished.
        force: clear what another task, or this one when finished, has left.

    Raises:
        UserError: it belongs to an unfinished training with other settings or inputs.
    """
    note = folder / "task.json"
    earlier: dict[str, Any] = {"task": task, "finished": False}
    if note.exists():
        earlier = json.loads(note.read_text(encoding="utf-8"))
    if force and (earlier["task"] != task or earlier["finished"]):
        shutil.rmtree(folder)
    elif earlier["task"] != task:
        old, new = (flatten(one["config"]) | one["inputs"] for one in (earlier["task"], task))
        changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
        raise UserError(
            f"{paths.label(folder)} holds a training with other {', '.join(changed)}: set them back to "
            f"resume it, --force starts afresh, another --run keeps both"
        )
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write_json(note, {"task": task, "finished": False})


def close(folder: Path, task: dict[str, Any]) -> None:
    """Note that the adapter of this task is published: --force will start afresh."""
    manifest.write_json(folder / "task.json", {"task": task, "finished": True})


def newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that verifies, and those after it that do not, renamed to `….broken`."""
    numbered = {int(match[1]): path for path in folder.iterdir() if (match := NAME.fullmatch(path.name))}
    broken: list[Path] = []
    for step in sorted(numbered, reverse=True):
        if _verifies(numbered[step]):
            return numbered[step], broken
        aside = folder / f"{numbered[step].name}.broken"
        shutil.rmtree(aside, ignore_errors=True)
        broken.append(numbered[step].rename(aside))
    return None, broken


def _verifies(checkpoint: Path) -> bool:
    try:
        sealed = json.loads((checkpoint / manifest.FILE).read_text(encoding="utf-8"))["files"]
        return manifest.hash_files(checkpoint) == {n: FileRecord.model_validate(r) for n, r in sealed.items()}
    except (OSError, ValueError, KeyError, UserError):
        return False
