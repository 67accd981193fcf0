"""Wrong paths in settings: found for every stage that make would run for a goal, and for no other."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.artifacts.stage import Stage
from lockstep.data import user_files
from lockstep.errors import UserError
from lockstep.settings.tree import Settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "HOME", tmp_path)
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path / "outputs")
    return tmp_path


def settings(home: Path, **sections: dict[str, Any]) -> Settings:
    """Settings whose paths exist, but for what is given."""
    rows = tiny.rows(home / "rows.jsonl", 3)
    (home / "base").mkdir(exist_ok=True)
    right = {"model": {"source": "local", "path": str(home / "base")}, "data": {"train_file": str(rows)}}
    return Settings.model_validate(
        {"run": "r"} | {name: right.get(name, {}) | sections.get(name, {}) for name in right | sections}
    )


def exit_code(given: Settings, goal: str) -> int:
    folders = {"download": given.model.folder, "evaluate": given.run_dir / "eval", "train": given.run_dir / "adapter"}
    return user_files.check_exit_code(given, goal, folders.get(goal, given.run_dir / goal))


def finish(folder: Path) -> None:
    with Stage(folder.name, folder, {}, []).writing() as work:
        (work / "file").write_text("x")


WRONG = [
    ("download", {"model": {"path": "absent"}}, "no folder absent: set --model.path"),
    ("download", {"model": {"path": None}}, "--model.source local needs --model.path"),
    ("data", {"data": {"train_file": "absent.jsonl"}}, "no file absent.jsonl"),
    ("data", {"data": {"train_file": "absent-*.jsonl"}}, r"no file absent-\*.jsonl"),
    ("data", {"data": {"validation_file": "absent.csv"}}, "no file absent.csv"),
    ("data", {"data": {"test_file": "data"}}, "no file data"),
    ("data", {"data": {"template": "absent.jinja"}}, "--data.template absent.jinja: absent.jinja is not there"),
    ("data", {"data": {"template": "instruction_en"}}, "--data.template instruction_en: .* known are model, instruction_zh"),
    ("data", {"data": {"train_file": "data/README.md"}}, r"the suffix .md are not read, only .jsonl.*: rename it"),
    ("data", {"data": {"train_file": "data/*.md"}}, "the suffix .md are not read"),
    ("train", {"lora": {"start_from": "absent"}}, "--lora.start_from absent holds no adapter"),
    ("merge", {"adapter": {"path": "absent"}}, "--adapter.path absent holds no adapter"),
    ("evaluate", {"evaluate": {"panel": "absent.json"}}, "--evaluate.panel: no file absent.json"),
]  # fmt: skip
STAGES = ("download", "data", "train", "merge", "evaluate")


@pytest.mark.parametrize(("stage", "sections", "message"), WRONG)
def test_a_wrong_path_is_found_for_every_goal_that_needs_its_stage(
    home: Path, stage: str, sections: dict[str, Any], message: str
) -> None:
    given = settings(home, **sections)
    with pytest.raises(UserError, match=message):
        user_files.check_paths(given, stage)
    for goal in STAGES:
        if STAGES.index(goal) < STAGES.index(stage):
            assert exit_code(given, goal) == 3
        else:
            with pytest.raises(UserError, match=message):
                exit_code(given, goal)


def test_right_paths_and_those_that_nothing_reads(home: Path) -> None:
    assert exit_code(settings(home), "evaluate") == 3
    assert (
        exit_code(settings(home, data={"train_file": str(home / "*.jsonl"), "template": "instruction_zh"}), "data") == 3
    )
    inside = {"source": "hub", "id": "org/rows", "train_file": "in/the/data-set.jsonl"}
    assert exit_code(settings(home, data=inside, model={"source": "hub", "path": "absent"}), "evaluate") == 3
    adapter = home / "theirs"
    adapter.mkdir()
    (adapter / filenames.ADAPTER_CONFIG).write_text(json.dumps({}))
    taken_in = settings(home, adapter={"path": str(adapter)}, lora={"start_from": "absent"})
    assert exit_code(taken_in, "merge") == 3  # nothing is trained
    with pytest.raises(UserError, match="start_from"):
        exit_code(taken_in, "train")


def test_what_a_finished_stage_has_read_may_be_gone(home: Path) -> None:
    given = settings(home, data={"train_file": "absent.jsonl"}, model={"path": "absent"})
    finish(given.run_dir / "data")
    assert exit_code(given, "merge") == 3
    finish(given.run_dir / "adapter")
    (given.run_dir / "data/file").unlink()  # and make would not make it again for a merge
    assert exit_code(given, "merge") == 3
    assert exit_code(given, "train") == 0
    with pytest.raises(UserError, match=r"no file absent\.jsonl"):
        exit_code(given, "data")


def test_suffixes_that_are_read_and_cures_for_others(home: Path) -> None:
    for name in (
        "a.jsonl",
        "a.JSON",
        "a.ndjson.gz",
        "a.csv",
        "a.tsv.gz",
        "a.Parquet",
        "a.arrow",
        "rows",
        "rows.gz",
        "v1.2.json",
    ):
        (home / name).write_text("{}")
        assert user_files.files_of(home, name) == [home / name]
    for name, cure in {
        "a.xlsx": "CSV UTF-8",
        "a.zip": "unpack",
        "a.tar.gz": "unpack",
        "a.txt": "rename",
        "a.jsonl.bak": "rename",
    }.items():
        (home / name).write_text("{}")
        with pytest.raises(UserError, match=cure):
            user_files.files_of(home, name)


def test_a_folder_that_datasets_saved(home: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"instruction": f"q{n}", "output": "a"} for n in range(5)])
    rows.save_to_disk(home / "plain", num_shards=2)
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(home / "parts")
    plain = user_files.files_of(home, "plain")
    assert [file.name for file in plain] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert user_files.files_of(home, "plain", "test") == plain
    (test,) = user_files.files_of(home, "parts", "test")
    assert test.parent.name == "test" and user_files.files_of(home, "parts")[0].parent.name == "train"
    with pytest.raises(UserError, match="holds no split validation"):
        user_files.files_of(home, "parts", "validation")
    (line,) = user_files.unused_splits(settings(home, data={"train_file": str(home / "parts")}).data)
    assert "also holds test" in line and line.endswith(f"--data.test_file {home / 'parts'}")
    named = {"train_file": str(home / "parts"), "test_file": str(home / "parts")}
    assert user_files.unused_splits(settings(home, data=named).data) == []
    plain[0].unlink()
    with pytest.raises(UserError, match="not complete: data-00000"):
        user_files.files_of(home, "plain")
    (home / "folder").mkdir()
    with pytest.raises(UserError, match=r"it is a folder; name files in it, such as .*folder/\*.jsonl"):
        user_files.files_of(home, "folder")
