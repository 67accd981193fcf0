"""A run as it stands: its paths, its rows, what must be downloaded, and the next command."""

import json
from pathlib import Path

import pytest

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.doctor import run_state
from lockstep.settings.tree import Settings

ROW = {"instruction": "Who are you?", "output": "I am an assistant."}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "HOME", tmp_path)
    for name in ("MODELS", "OUTPUTS", "DATASETS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    return tmp_path


def settings_for(home: Path, rows: list[object], **more: object) -> Settings:
    file = home / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Settings.model_validate({"run": "r", "data": {"train_file": str(file)}, **more})


def codes(settings: Settings) -> list[str]:
    return [finding.code for finding in run_state.look(settings).findings]


def test_rows_that_the_data_stage_reads_are_well(home: Path) -> None:
    look = run_state.look(settings_for(home, [ROW | {"instruction": f"{n}?"} for n in range(30)]))
    assert look.findings == ()
    facts = {fact.name: fact.value for fact in look.facts}
    assert facts["data"] == "30 rows looked at, of 1 files" and facts["run"] == "r: next `make download`"


def test_rows_that_it_would_refuse_are_a_finding_in_its_own_words(home: Path) -> None:
    settings = settings_for(home, [ROW, {"foo": 1}, {"foo": 2}])
    (finding,) = run_state.look(settings).findings
    assert finding.code == "data_rows" and "2 of 3 rows were dropped (missing_instruction 2)" in finding.what


def test_a_file_that_is_not_there(home: Path) -> None:
    settings = settings_for(home, [ROW])
    (home / "rows.jsonl").unlink()
    assert codes(settings) == ["path_missing"]


def test_the_toy_data_is_written_by_make(home: Path) -> None:
    settings = Settings.model_validate({"data": {"train_file": "data/toy/none.jsonl"}})
    assert codes(settings) == []


def test_what_must_be_downloaded(home: Path) -> None:
    settings = settings_for(home, [ROW])
    assert [need.source for need in run_state.needs(settings)] == ["hub"]
    local = settings_for(home, [ROW], model={"source": "local", "path": str(home)})
    assert run_state.needs(local) == []


def test_a_stage_whose_files_were_changed(home: Path) -> None:
    settings = settings_for(home, [ROW])
    folder = settings.run_dir / filenames.DATA
    folder.mkdir(parents=True)
    (folder / filenames.MANIFEST).write_text("{}")
    assert codes(settings) == ["output_damaged"]


def test_memory_and_disk_that_a_model_takes(home: Path) -> None:
    settings = settings_for(home, [ROW])
    assert run_state.memory_needed(settings, False) == 0 and run_state.disk_needed(settings) == run_state.GIB
    settings.model.folder.mkdir(parents=True)
    with (settings.model.folder / "model.safetensors").open("wb") as weights:
        weights.truncate(2 * run_state.GIB)
    assert run_state.disk_needed(settings) == 3 * run_state.GIB
    assert run_state.memory_needed(settings, False) > 5 * run_state.GIB
    assert run_state.memory_needed(settings, True) == 0
