import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import homes
from support.programs import ROOT, script_environment

import lockstep
from lockstep.artifacts import manifest
from lockstep.artifacts.stage import Stage
from lockstep.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.settle(monkeypatch, tmp_path)


def new(home: Path, config: dict | None = None, inputs: list[Path] | None = None, force: bool = False) -> Stage:
    return Stage("data", home / "outputs/r/data", config or {"data": {"x": 1}}, inputs or [], force)


def write(stage: Stage, text: str = "a") -> None:
    with stage.writing() as work:
        (work / "sub").mkdir()
        (work / "sub/file").write_text(text)


def test_an_output_appears_whole_and_is_then_up_to_date(home: Path) -> None:
    stage = new(home)
    assert stage.finished() is None
    with stage.writing() as work:
        (work / "file").write_text("a")
        assert not stage.folder.exists()
    assert sorted(path.name for path in stage.folder.iterdir()) == ["file", "manifest.json"]
    assert new(home).finished() is not None


def test_other_settings_are_refused_by_name_and_force_replaces(home: Path) -> None:
    write(new(home))
    with pytest.raises(UserError, match=r"data\.x: 1 → 2.*--force"):
        new(home, {"data": {"x": 2}}).finished()
    stage = new(home, {"data": {"x": 2}}, force=True)
    assert stage.finished() is None
    write(stage, "b")
    assert (stage.folder / "sub/file").read_text() == "b"
    assert new(home, {"data": {"x": 2}}).finished() is not None


def test_an_output_that_is_a_link_to_another_disk_stays_one(home: Path) -> None:
    (home / "outputs/r").mkdir(parents=True)
    (home / "large").mkdir()
    (home / "outputs/r/data").symlink_to(home / "large/data")
    for text in "abc":
        write(new(home, force=True), text)
        assert (home / "outputs/r/data").is_symlink() and (home / "large/data/sub/file").read_text() == text
        assert new(home).finished()
    assert sorted(path.name for path in (home / "large").iterdir()) == [".data.lock", "data"]
    assert [path.name for path in (home / "outputs/r").iterdir()] == ["data"]


def test_the_version_of_lockstep_is_on_record_and_not_in_the_digest(home: Path) -> None:
    stage = new(home)
    write(stage)
    record = manifest.read(stage.folder)
    assert record.versions["lockstep"] == lockstep.__version__
    other = record.model_copy(update={"versions": record.versions | {"lockstep": "99.0.0"}})
    assert other.content_digest() == record.digest


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o007, 0o640)])
def test_files_can_be_read_by_whom_the_umask_allows(home: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with new(home).writing() as work:
            (work / "weights").write_text("a")
            (work / "weights").chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (home / "outputs/r/data/weights").stat().st_mode & 0o777 == mode


def test_a_changed_input_file_is_refused_by_name(home: Path) -> None:
    source = home / "rows.jsonl"
    source.write_text("1")
    write(new(home, inputs=[source]))
    assert new(home, inputs=[source]).finished()
    source.write_text("2")
    with pytest.raises(UserError, match=r"rows\.jsonl: \w{8} → \w{8}"):
        new(home, inputs=[source]).finished()


def test_a_failure_leaves_no_trace_and_the_old_output_untouched(home: Path) -> None:
    write(new(home))
    with pytest.raises(RuntimeError), new(home, force=True).writing() as work:
        (work / "half").write_text("half")
        raise RuntimeError
    folder = home / "outputs/r"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["data"]
    assert new(home).finished()


def test_a_replacement_killed_between_its_renames_is_undone(home: Path) -> None:
    stage = new(home)
    write(stage)
    stage.folder.rename(stage.folder.with_name(".data.replaced"))
    with pytest.raises(RuntimeError), new(home, force=True).writing():
        assert new(home).finished()
        raise RuntimeError
    assert new(home).finished()


HOLDER = """
import sys, time
from pathlib import Path
from lockstep.artifacts.stage import Stage
with Stage("data", Path(sys.argv[1]), {"data": {"x": 1}}, []).writing() as work:
    (work / "file").write_text("half")
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_second_run_names_the_holder_at_once_and_a_killed_holder_frees_the_folder(home: Path) -> None:
    environment = script_environment(home, PYTHONPATH=str(ROOT / "scripts"))
    folder = home / "outputs/r/data"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "in\n"
    started = time.monotonic()
    with pytest.raises(UserError, match=f"being written by process {holder.pid} on"):
        write(new(home))
    assert time.monotonic() - started < 2
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not folder.exists()
    assert manifest.looks_complete(folder) is False
    write(new(home))
    assert new(home).finished()
    assert not folder.with_name(".data.partial").exists()


def test_an_input_whose_bytes_changed_is_never_read(home: Path) -> None:
    base = Stage("download", home / "models/m", {}, [])
    with base.writing() as work:
        (work / "file").write_text("aaaa")
    stage = new(home, inputs=[base.folder])
    (base.folder / "file").write_text("bbbb")
    with pytest.raises(UserError, match="models/m/file was changed"), stage.writing():
        raise AssertionError("the stage must not start")


def test_an_input_that_changes_while_the_stage_works_is_no_input_of_what_is_published(home: Path) -> None:
    base, source = Stage("download", home / "models/m", {}, []), home / "rows.jsonl"
    write(base)
    source.write_text("1")
    inputs = [base.folder, source]
    write(new(home, inputs=inputs))
    stage = new(home, inputs=inputs)  # what it will look for is known before it starts
    source.write_text("2")
    with pytest.raises(UserError, match=r"rows\.jsonl changed while"), stage.writing():
        raise AssertionError("the stage must not start")
    again = new(home, inputs=inputs, force=True)
    with pytest.raises(UserError, match="models/m changed while"), again.writing() as work:
        (work / "file").write_text("of the old one")
        write(Stage("download", base.folder, {"other": 1}, [], True), "b")
    assert (home / "outputs/r/data/sub/file").read_text() == "a"


def test_a_full_disk_keeps_the_old_output(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(new(home))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(new(home, force=True), "b")
    monkeypatch.undo()
    assert (home / "outputs/r/data/sub/file").read_text() == "a"
