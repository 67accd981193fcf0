"""A folder is complete if and only if its manifest verifies.

`manifest.json` is written last. Its `digest` covers what the folder is: stage, schema, the settings that the stage
read, the digests of its inputs and the hashes of its files. It does not cover what may differ between two equal runs:
time, command, versions, device, metrics.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import filelock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.settings import commands
from lockstep.settings.tree import ConfigFile, flatten

SCHEMA = 1
# Files that contain timings, or sentences for people: verified like all others, but not part of what the folder *is*.
# Digests of older folders cover more of them.
VOLATILE_FILES = frozenset({filenames.METRICS, filenames.PREVIEW, filenames.QUALITY})
ONCE_VOLATILE = frozenset({filenames.METRICS})
FORMERLY_VOLATILE = (ONCE_VOLATILE, frozenset({filenames.METRICS, filenames.PREVIEW}))
CACHED = 500  # hashes of large files to remember
# Stage → the goal of make that makes its folder, for messages about missing folders.
MAKERS = {
    "download": "download",
    "dataset": "data",
    "data": "data",
    "train": "train",
    "merge": "merge",
    "base": "serve-lora",
    "evaluate": "evaluate",
}
# Folder of a run → the stage that makes it.
STAGES = {
    filenames.DATA: "data",
    filenames.ADAPTER: "train",
    filenames.MERGED: "merge",
    filenames.BASE: "base",
    filenames.EVALUATION: "evaluate",
}
# What a stage reads of its own run; folders of other runs, and files in them, are never named so.
OWN_INPUT = re.compile(rf"outputs/([^/]+)/(?:{filenames.DATA}|{filenames.ADAPTER})")


def stage_of(folder: Path) -> str:
    """The stage that makes a folder, judging by where the folder is."""
    if folder.parent == paths.MODELS:
        return "download"
    return "dataset" if folder.parent == paths.DATASETS else STAGES.get(folder.name, "data")


def maker_of(folder: Path) -> str:
    """The command that makes a folder, for messages."""
    return commands.make(MAKERS[stage_of(folder)])


def again(folder: Path) -> str:
    """What to run so that a folder is made again, for messages."""
    stage = stage_of(folder)
    if stage == "dataset":  # --force would only build the rows again
        return f"remove {paths.label(folder)} and run `{maker_of(folder)}`"
    if stage == "base":
        return f"run `{commands.script('03_merge_lora.py', '--base', '--force')}`"
    return f"run `{commands.make(MAKERS[stage], '--force')}`"


class FileRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a stage wrote, from what, with which settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    stage: str
    schema_: int = Field(SCHEMA, alias="schema")
    config: dict[str, Any]
    config_file: ConfigFile | None = None  # what it said of the sections in `config`
    inputs: dict[str, str]  # label of a folder or file → its digest
    files: dict[str, FileRecord]  # path inside the folder → size and hash
    digest: str
    created: str = ""
    argv: list[str] = []
    git_commit: str | None = None
    revision: str | None = None  # of a download: the commit, or the wheel's checksum
    origin: Literal["external"] | None = None  # of an adapter: external where it was trained elsewhere
    metrics: dict[str, Any] = {}
    versions: dict[str, str] = {}
    device: str = ""
    threads: int = 0
    seconds: float = 0.0

    def content_digest(self, volatile: frozenset[str] = VOLATILE_FILES) -> str:
        """sha256 over everything that makes this folder what it is; equal content gives equal digests."""
        content = {
            "stage": self.stage,
            "schema": self.schema_,
            "config": self.config,
            "inputs": self.inputs,
            "files": {name: record.sha256 for name, record in self.files.items() if name not in volatile},
        }
        return hashlib.sha256(canonical(content)).hexdigest()

    @property
    def is_intact(self) -> bool:
        """Whether the digest is that of the content, by the rules of this version or of an earlier one."""
        return self.digest in map(self.content_digest, (VOLATILE_FILES, *FORMERLY_VOLATILE))

    def differences(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
        """What would change if the stage ran again with this config and these inputs."""
        old, new = flatten(self.config), flatten(config)
        changed = [
            f"{key}: {old.get(key)!r} → {new.get(key)!r}" for key in sorted(old | new) if old.get(key) != new.get(key)
        ]
        for name in sorted(self.inputs | dict(inputs)):
            before, now = self.inputs.get(name), inputs.get(name)
            if before != now:
                changed.append(f"{name}: {short(before)} → {short(now)}")
        return changed


def canonical(value: Any) -> bytes:
    """The canonical spelling of a JSON value, for hashing."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def short(digest: str | None) -> str:
    """The first characters of a digest, for messages."""
    return digest[:8] if digest else "none"


def sha256_of(file: Path) -> str:
    """sha256 of a file's bytes, cached by device, inode, size, mtime and ctime.

    A user cannot set ctime back, so even an edit that preserves mtime is noticed. Renaming the folder that contains
    the file changes none of them.
    """
    status = file.stat()
    if status.st_size < 2**20:  # hashing it is faster than looking it up
        return hashlib.sha256(file.read_bytes()).hexdigest()
    key = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    cache = _read_cache()
    if key not in cache:
        with file.open("rb") as stream:
            cache[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(_cache_file().with_suffix(".lock")):  # several stages may run at once
            kept = dict(list(cache.items())[-CACHED:])
            atomic.write_json(_cache_file(), {"hashes": kept, "sha256": hashlib.sha256(canonical(kept)).hexdigest()})
    return cache[key]


def _cache_file() -> Path:
    return paths.OUTPUTS / ".hashes.json"


def _read_cache() -> dict[str, str]:
    try:
        cache = atomic.read_json(_cache_file())
        hashes: dict[str, str] = cache["hashes"]
        sound = hashlib.sha256(canonical(hashes)).hexdigest() == cache["sha256"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}  # there is none yet, or it is damaged: hash again
    return hashes if sound else {}


def payload(folder: Path) -> dict[str, Path]:
    """The files of a folder by relative name, without the manifest.

    Raises:
        UserError: something in it is not a regular file (a link, a socket).
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise UserError(f"{paths.label(path)} is not a regular file: links are not followed here")
        files[path.relative_to(folder).as_posix()] = path
    files.pop(filenames.MANIFEST, None)
    return files


def hash_files(folder: Path) -> dict[str, FileRecord]:
    """Size and sha256 of every file in a folder, without the manifest."""
    return {
        name: FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path)) for name, path in payload(folder).items()
    }


def read(folder: Path) -> Manifest:
    """The manifest of a stage's folder.

    Raises:
        UserError: missing, unreadable, or not what its own digest says.
    """
    name = paths.label(folder)
    try:
        text = (folder / filenames.MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        state = "is incomplete" if folder.is_dir() else "is missing"
        raise UserError(f"{name} {state} (no {filenames.MANIFEST}): run `{maker_of(folder)}` first") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}/{filenames.MANIFEST} cannot be read ({error}): {again(folder)}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{name}/{filenames.MANIFEST} is damaged: {again(folder)}") from error
    if manifest.schema_ != SCHEMA or not manifest.is_intact:
        raise UserError(f"{name}/{filenames.MANIFEST} was changed by hand: {again(folder)}")
    return manifest.model_copy(update={"inputs": as_renamed(manifest.inputs, folder)})


def as_renamed(inputs: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The inputs of a folder of a run, under the run's present name: its folder may have been renamed, or copied.

    Args:
        folder: of a stage, or of the checkpoints, in the run's folder.
    """
    former = next((match[1] for name in inputs if (match := OWN_INPUT.fullmatch(name))), None)
    if former is None or folder.parent.parent != paths.OUTPUTS or folder.parent.name == former:
        return dict(inputs)
    old, new = f"outputs/{former}/", f"outputs/{folder.parent.name}/"
    return {new + name.removeprefix(old) if name.startswith(old) else name: digest for name, digest in inputs.items()}


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Fail within milliseconds if files are missing, unexpected, or of another size.

    Raises:
        UserError: names the file.
    """
    present = payload(folder)
    for name in sorted(present.keys() | manifest.files.keys()):
        record = manifest.files.get(name)
        if record is None:
            problem = "does not belong there"
        elif name not in present:
            problem = "is missing"
        elif present[name].stat().st_size != record.bytes:
            problem = "has another size than when it was made"
        else:
            continue
        raise UserError(f"{paths.label(folder / name)} {problem}: {again(folder)}")


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Compare every byte with what the stage wrote.

    Raises:
        UserError: names the file.
    """
    check_sizes(folder, manifest)
    for name, record in manifest.files.items():
        if sha256_of(folder / name) != record.sha256:
            raise UserError(f"{paths.label(folder / name)} was changed after it was made: {again(folder)}")


def check_seal(folder: Path) -> None:
    """Compare every byte of a user's folder with its manifest, if a stage or a checkpoint of ours left one in it.

    Raises:
        UserError: names the file.
    """
    try:
        files = atomic.read_json(folder / filenames.MANIFEST)["files"]
        sealed = {folder / name: FileRecord.model_validate(record) for name, record in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    for file, record in sealed.items():
        whole = file.is_relative_to(folder) and ".." not in file.parts and file.is_file()
        if not whole or file.stat().st_size != record.bytes or sha256_of(file) != record.sha256:
            raise UserError(f"{paths.label(file)} was changed after it was made: it is not taken")


def fingerprint(path: Path) -> str:
    """What represents an input in a digest: a folder's own digest, or a file's sha256."""
    if path.is_dir():
        return read(path).digest
    return sha256_of(path)


def require(folder: Path, stage: str) -> Manifest:
    """The manifest of an input folder, checked as far as is possible within a second.

    Sizes must match, and the inputs from which the folder was made must be unchanged if they still exist: a deleted
    input is not an error, a changed one makes the folder stale.

    Raises:
        UserError: missing, incomplete, changed, stale, or made by another stage.
    """
    manifest = read(folder)
    if manifest.stage != stage:
        raise UserError(f"{paths.label(folder)} was made by stage {manifest.stage}, not {stage}")
    check_sizes(folder, manifest)
    for name, digest in manifest.inputs.items():
        source = paths.resolve_label(name)
        if not (source / filenames.MANIFEST).exists() and not source.is_file():
            continue
        now = fingerprint(source)
        if now != digest:
            anew = again(folder) if manifest.origin is None else "give stage 03 --adapter.path and --force again"
            raise UserError(
                f"{paths.label(folder)} was made from {name} {short(digest)}, which is now "
                f"{short(now)}: {anew}, or take another --run"
            )
    return manifest


def identity(folder: Path) -> str:
    """What distinguishes one published output from the next, even with equal bytes; empty if there is none.

    It covers the whole manifest, and so the time at which the output was made.
    """
    file = folder / filenames.MANIFEST
    return sha256_of(file) if file.exists() else ""


def looks_complete(folder: Path) -> bool:
    """Whether a folder has a valid manifest and files of the right sizes."""
    try:
        check_sizes(folder, read(folder))
    except UserError:
        return False
    return True
