"""A finished tiny run, and its server started as a user does, for the tests with the real vLLM."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from support import programs, tiny
from support.programs import ROOT, free_port, script_environment

from lockstep.artifacts import atomic, filenames, manifest
from lockstep.endpoint import server_note


@dataclass(frozen=True)
class Home:
    """A home in which the run `r` is finished."""

    folder: Path

    @property
    def words(self) -> tuple[str, ...]:
        """The settings that all stages share."""
        return ("--run", "r", "--model.name", "tiny", "--model.source", "local", "--model.path", str(self.origin / "tiny"),
                "--data.train_file", str(self.origin / "rows.jsonl"))  # fmt: skip

    @property
    def origin(self) -> Path:
        """Where the run was made: copies keep its paths."""
        note = self.folder / "origin"
        return Path(note.read_text()) if note.exists() else self.folder

    @property
    def run(self) -> Path:
        return self.folder / "outputs/r"

    def copy(self, folder: Path) -> "Home":
        """The same run in another home, to be spoilt there."""
        shutil.copytree(self.folder, folder)
        (folder / "origin").write_text(str(self.origin))
        return Home(folder)

    def stage(self, script: str, *words: str) -> None:
        ended = programs.run(self.folder, script, *self.words, *words)
        assert ended.returncode == 0, ended.stdout + ended.stderr


def report(home: Home) -> Any:
    """What the gate wrote."""
    return json.loads((home.run / "serve/gate_report.json").read_text(encoding="utf-8"))


TRAIN = ("--train.max_steps", "6", "--train.learning_rate", "2e-2", "--lora.r", "8")


def finished_run(
    folder: Path,
    *extra: str,
    base: bool = True,
    model: Callable[[Path], object] = tiny.model,
    rows: Callable[[Path, int], object] = tiny.rows,
) -> Home:
    """All stages, and the dequantized base if it is wanted; forked from one process, as their imports take longest.

    A run that stands there finished is taken as it is.

    Args:
        extra: settings of the stages that have them.
        model: writes the base.
        rows: writes so many rows.
    """
    home = Home(folder)
    if (home.run / ("base" if base else "merged")).exists():
        return home
    model(folder / "tiny")
    rows(folder / "rows.jsonl", 40)
    home.stage("00_download_model.py")
    home.stage("01_data_collator.py", *extra)
    home.stage("02_train_qlora.py", *extra, *TRAIN)
    home.stage("03_merge_lora.py")
    if base:
        home.stage("03_merge_lora.py", "--base")
    return home


def reseal(folder: Path, inputs: dict[str, str] | None = None) -> str:
    """Make a spoilt folder's manifest true again, as a stage with a fault would have written it; returns its digest."""
    record = manifest.Manifest.model_validate_json((folder / filenames.MANIFEST).read_text())
    changed = record.model_copy(update={"files": manifest.hash_files(folder), "inputs": record.inputs | (inputs or {})})
    changed = changed.model_copy(update={"digest": changed.content_digest()})
    atomic.write_json(folder / filenames.MANIFEST, changed.model_dump(by_alias=True))
    return changed.digest


def note_as_compared(home: Home) -> None:
    """Let the comparison of files with base and adapter be passed over, so that a live server has to show a fault."""
    (model,) = (folder for folder in (home.folder / "models").iterdir() if folder.is_dir())
    notes = {}
    for name in (filenames.MERGED, filenames.BASE):
        folders = [home.run / name, home.run / filenames.ADAPTER, model]
        of = {folder.relative_to(home.folder).as_posix(): manifest.read(folder).digest for folder in folders}
        notes[name] = {"of": of, "tensors": 1}
    atomic.write_json(home.run / filenames.DISK_CHECK, notes)


def launch(home: Home, *words: str, port: int = 0, **environment: str) -> subprocess.Popen[str]:
    port = port or free_port()
    return subprocess.Popen(
        [str(ROOT / "scripts/serve_vllm.sh"), *home.words, "--serve.port", str(port), "--serve.max_model_len", "512", *words],
        env=script_environment(home.folder, PYTHON=sys.executable, ACCEL="cpu", **environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Served:
    url: str  # without /v1
    supervisor: subprocess.Popen[str]

    @property
    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.supervisor.pid).children(recursive=True)


@contextmanager
def served(home: Home, *words: str, **environment: str) -> Iterator[Served]:
    """A server that was let through the gate; at the end it stops as with Ctrl-C, and leaves nothing behind."""
    supervisor = launch(home, *words, **environment)
    assert supervisor.stderr
    folder = home.run / (filenames.SERVE_BASE if "base" in words else filenames.SERVE)
    try:
        note = server_note.wait_until_open(folder, supervisor)
        if note is None:
            raise AssertionError(supervisor.stderr.read())
        server = Served(note.url.removesuffix("/v1"), supervisor)
        family = server.family
        yield server
        if supervisor.poll() is None:
            os.killpg(supervisor.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
            assert supervisor.wait(timeout=60) == 130
        assert not psutil.wait_procs(family, timeout=10)[1]
    finally:
        supervisor.terminate()
        supervisor.wait(timeout=60)


def refused(home: Home, *words: str) -> tuple[int, str]:
    """(exit code, what stderr says) of a start that must not succeed."""
    supervisor = launch(home, *words)
    said, complaint = supervisor.communicate(timeout=300)
    assert "serving " not in said
    return supervisor.returncode, complaint


def ask(url: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
    """(status, JSON or text)."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, json.loads(text) if text.startswith("{") else text
