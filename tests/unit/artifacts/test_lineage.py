"""Edited settings are told apart from those that were given for one stage only."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import homes

from lockstep.artifacts import lineage, manifest
from lockstep.artifacts.stage import Stage
from lockstep.errors import UserError
from lockstep.settings import yaml_file
from lockstep.settings.tree import Settings

CONFIG = "run: r\nlora: {r: 8}\ntrain: {learning_rate: 1.0e-2, max_steps: 50}\ndata: {max_length: 99}\n"
SECTIONS = ("model", "data", "method", "lora", "quantization", "train")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.settle(monkeypatch, tmp_path)


def read(home: Path, text: str, typed: Mapping[str, str] = {}, name: str = "c.yaml") -> Settings:
    (home / name).write_text(text, encoding="utf-8")
    return yaml_file.load(home / name, typed)


def train(settings: Settings) -> Path:
    folder = settings.run_dir / "adapter"
    stage = Stage("train", folder, settings.sections(*SECTIONS), [], force=True, config_file=settings.config_file)
    with stage.writing() as work:
        (work / "weights").write_text("w")
    return folder


def edited(settings: Settings, folder: Path) -> list[str]:
    record = manifest.read(folder)
    return [edit.key for edit in lineage.edits(settings, record.config, record.config_file)]


def test_the_same_config_is_no_edit_whatever_one_stage_was_given_besides(home: Path) -> None:
    folder = train(read(home, CONFIG, {"train.max_steps": "3", "lora.r": "4", "data.max_length": "64"}))
    assert edited(read(home, CONFIG), folder) == []
    trained, record = lineage.require(read(home, CONFIG), folder, "train")
    assert (trained.lora.r, trained.data.max_length, record.config["train"]["max_steps"]) == (4, 64, 3)
    assert edited(yaml_file.load(None, {"run": "r"}), folder) == []


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("learning_rate: 1.0e-2", "learning_rate: 1.0e-3", "train.learning_rate"),
        ("max_steps: 50", "max_steps: 60", "train.max_steps"),
        (", max_steps: 50", "", "train.max_steps"),
        ("max_length: 99", "max_length: 98", "data.max_length"),
        ("lora: {r: 8}", "lora: {r: 8, lora_alpha: 8}", "lora.lora_alpha"),
        ("lora: {r: 8}", "lora: {r: 8}\nmethod: lora", "method"),
    ],
)
@pytest.mark.parametrize("typed", [{}, {"train.max_steps": "3"}])
def test_an_edited_file_is_told(home: Path, before: str, after: str, key: str, typed: dict[str, str]) -> None:
    folder = train(read(home, CONFIG, typed))
    assert edited(read(home, CONFIG.replace(before, after)), folder) == [key]


@pytest.mark.parametrize("text", ["serve: {port: 9}\n", "train: {logging_steps: 1}\n", "sampling: {top_p: 1}\n", ""])
def test_what_a_stage_does_not_read_is_no_edit(home: Path, text: str) -> None:
    folder = train(read(home, CONFIG.replace("train: {", "train: {save_steps: 7, ")))
    again = CONFIG.replace("train: {", "train: {logging_steps: 1, ") if text.startswith("train") else CONFIG + text
    assert edited(read(home, again), folder) == []
    assert edited(read(home, f"run: r\n{text}", name="only-serve.yaml"), folder) == []


def test_the_old_value_given_again_is_no_edit(home: Path) -> None:
    folder = train(read(home, CONFIG, {"train.learning_rate": "5e-3"}))
    changed = CONFIG.replace("1.0e-2", "0.005")
    assert edited(read(home, changed), folder) == []
    assert edited(read(home, CONFIG.replace("1.0e-2", "1.0e-4"), {"train.learning_rate": "5e-3"}), folder) == []
    assert edited(read(home, CONFIG, {"train.learning_rate": "1.0e-2"}), folder) == ["train.learning_rate"]


def test_the_refusal_names_file_values_and_both_ways_on(home: Path) -> None:
    folder = train(read(home, CONFIG))
    settings = read(home, CONFIG.replace("1.0e-2", "1.0e-3"))
    with pytest.raises(UserError) as refusal:
        lineage.require(settings, folder, "train")
    assert str(refusal.value) == (
        f"outputs/r/adapter was trained with other settings: train.learning_rate is 0.001 in {home}/c.yaml and was "
        "0.01; to make it again, run `make train ARGS=--force`; to go on with what is there, set it back or add "
        'ARGS="--train.learning_rate 0.01"'
    )
    assert lineage.notes(settings) == [str(refusal.value)] and lineage.notes(read(home, CONFIG)) == []
    data = read(home, CONFIG.replace("99", "98"))
    with pytest.raises(UserError, match=r"run `make data ARGS=--force`"):
        lineage.require(data, folder, "train")


def test_rows_that_are_not_there_are_no_way_on(home: Path) -> None:
    settings = read(home, CONFIG)
    stage = Stage("data", settings.run_dir / "data", settings.sections("model", "data"), [], settings.config_file)
    with stage.writing() as work:
        (work / "ledger.json").write_text("{}")
    with pytest.raises(UserError) as refusal:
        lineage.require(read(home, CONFIG, {"data.train_file": "rwos.jsonl"}), stage.folder, "data")
    text = str(refusal.value)
    assert text.startswith("--data.train_file: no file rwos.jsonl; outputs/r/data was made from") and "make" not in (
        text.removeprefix("--data.train_file").replace("was made from", "")
    )
    (home / "others.jsonl").write_text("{}")
    with pytest.raises(UserError, match="to make it again"):
        lineage.require(read(home, CONFIG, {"data.train_file": f"{home}/o*.jsonl"}), stage.folder, "data")


def test_rows_that_were_changed_since_are_told(home: Path) -> None:
    rows = home / "rows.jsonl"
    rows.write_text("{}\n")
    settings = read(home, CONFIG)
    stage = Stage("data", settings.run_dir / "data", settings.sections("model", "data"), [rows])
    with stage.writing() as work:
        (work / "ledger.json").write_text("{}")
    assert lineage.newer_rows(settings.run_dir) == ""
    rows.write_text("{ }\n")
    assert f"{rows} was changed since outputs/r/data was made from it" in lineage.newer_rows(settings.run_dir)
    rows.unlink()
    assert lineage.newer_rows(settings.run_dir) == ""


def test_what_was_made_without_a_config_is_compared_by_its_values(home: Path) -> None:
    folder = train(yaml_file.load(None, {"run": "r", "lora.r": "8"}))
    assert manifest.read(folder).config_file is None
    assert edited(read(home, "run: r\nlora: {r: 8}\n"), folder) == []
    assert edited(read(home, "run: r\nlora: {r: 4}\n"), folder) == ["lora.r"]


def test_of_an_earlier_versions_folder_the_command_line_tells_what_was_overridden(home: Path) -> None:
    folder = train(read(home, CONFIG, {"train.max_steps": "3"}))
    text = json.loads((folder / "manifest.json").read_text())
    del text["config_file"]
    text["argv"] = ["02_train_qlora.py", "--config", "c.yaml", "--train.max_steps", "3"]
    (folder / "manifest.json").write_text(json.dumps(text))
    lineage.refuse_edits(read(home, CONFIG), folder, manifest.read(folder))
    with pytest.raises(UserError, match=r"train\.learning_rate is 0\.001 .* and was 0\.01"):
        lineage.refuse_edits(read(home, CONFIG.replace("1.0e-2", "1.0e-3")), folder, manifest.read(folder))
