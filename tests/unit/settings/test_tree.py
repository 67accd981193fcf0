import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT

from lockstep.errors import UserError
from lockstep.settings import yaml_file


def write(folder: Path, text: str) -> Path:
    file = folder / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_command_line_beats_yaml_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path, "lora:\n  r: 8\ntrain:\n  learning_rate: 1e-4\n")
    settings = yaml_file.load(file, {"lora.r": "4"})
    assert (settings.lora.r, settings.train.learning_rate, settings.lora.lora_alpha) == (4, 1e-4, 32)
    assert settings.explicit == {"lora.r": "on the command line", "train.learning_rate": f"in {file}"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lora:\n  rr: 8\n", "did you mean lora.r?"),
        ("lerning_rate: 1\n", "did you mean train.learning_rate?"),
        ("train:\n  learning_rate: fast\n", "train.learning_rate in"),
        ("lora:\n  r: 8\n  r: 9\n", "stands twice"),
        ("run: ../../etc\n", "must start with a letter or digit"),
        ("- a\n", "must map setting names"),
        ("a: [\n", "is not YAML"),
        ("lora: 3\n", "lora in"),
        ("train:\n  learning_rate: .nan\n", "train.learning_rate in"),
        ("lora:\n  on: 3\n", "put it in quotes"),
        ("1: 2\n", "put it in quotes"),
        ("a: &a\n  x: *a\n", "is not YAML"),
        ("lora.r: 8\n", "write `r` under a section `lora:`"),
        ("data:\n  validation_share: 0.6\n  test_share: 0.6\n", "must leave something to train on"),
        ("train:\n  max_steps: 0\n", "must not be 0"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        yaml_file.load(write(tmp_path, text), {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"run: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        yaml_file.load(file, {})
    with pytest.raises(UserError, match="No such file"):
        yaml_file.load(tmp_path / "absent.yaml", {})


def test_an_empty_section_is_no_error(tmp_path: Path) -> None:
    assert yaml_file.load(write(tmp_path, "lora:\n  # r: 8\nrun: x\n"), {}).lora.r == 16


@pytest.mark.parametrize("text", ['{"adam_beta2": NaN}', '{"adam_beta2": 1e999}'])
def test_a_map_holds_what_json_knows(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="must hold what JSON knows"):
        yaml_file.load(None, {"train.training_args": text})
    (tmp_path / "c.yaml").write_text("serve:\n  vllm_args:\n    since: 2024-01-01\n")
    with pytest.raises(UserError, match="must hold what JSON knows"):
        yaml_file.load(tmp_path / "c.yaml", {})


def test_what_is_not_utf8_on_the_command_line_is_refused() -> None:
    with pytest.raises(UserError, match=r"--model\.path: .* is not UTF-8"):
        yaml_file.load(None, {"model.path": "caf\udce9"})
    assert yaml_file.load(None, {"data.system_prompt": "a\nb 😀"}).data.system_prompt == "a\nb 😀"


def test_null_clears_and_lists_split_at_commas() -> None:
    settings = yaml_file.load(None, {"data.system_prompt": "null", "lora.target_modules": "q_proj,v_proj"})
    assert settings.data.system_prompt is None
    assert settings.lora.target_modules == ("q_proj", "v_proj")


def test_later_stages_take_settings_from_the_manifest() -> None:
    made_with = yaml_file.load(None, {"lora.r": "8", "data.max_length": "99"}).sections(
        "data", "lora", "method", "model"
    )
    assert yaml_file.load(None, {}).inherit(made_with).lora.r == 8
    assert yaml_file.load(None, {"lora.r": "8"}).inherit(made_with).data.max_length == 99


def test_columns_may_be_a_map_in_yaml(tmp_path: Path) -> None:
    text = "data:\n  columns:\n    instruction: 问题\n    output: 'the answer, '\n"
    settings = yaml_file.load(write(tmp_path, text), {})
    assert settings.data.columns == ("instruction=问题", "output=the answer, ")
    assert settings.explicit == {"data.columns": f"in {tmp_path / 'c.yaml'}"}
    assert settings.inherit(settings.sections("data")).data == settings.data
    for wrong in ("instruction: 3", "问题: instruction", "instruction:", "instruction: {a: b}"):
        with pytest.raises(UserError, match=r"data\.columns"):
            yaml_file.load(write(tmp_path, f"data:\n  columns:\n    {wrong}\n"), {})
    maps = yaml_file.load(write(tmp_path, "train:\n  training_args: {adam_beta2: 0.95}\n"), {})
    assert list(maps.explicit) == ["train.training_args"]
    assert maps.config_file and maps.config_file.values == {"train.training_args": {"adam_beta2": 0.95}}


def test_what_the_command_line_overrides_is_remembered_as_it_stands_in_the_file(tmp_path: Path) -> None:
    settings = yaml_file.load(write(tmp_path, "run: r\nlora: {r: 8}\ndata: {date: 2024-01-01}\n"), {"lora.r": "4"})
    assert settings.lora.r == 4 and settings.config_file
    assert settings.config_file.values == {"run": "r", "lora.r": 8, "data.date": "2024-01-01"}
    changed = settings.replace("lora", {"r": 2}).inherit({"method": "lora"})
    assert changed.config_file == settings.config_file and yaml_file.load(None, {"lora.r": "4"}).config_file is None


def test_a_path_has_one_spelling() -> None:
    spellings = ["data/toy/train.jsonl", "./data/../data/toy/train.jsonl", str(ROOT / "data/toy/train.jsonl")]
    assert {yaml_file.load(None, {"data.train_file": text}).data.train_file for text in spellings} == {(spellings[0],)}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "", ".hidden", "-rf", "a b", "a\0b", "a" * 97, "a\n", "名"])
def test_no_run_name_leaves_the_outputs_folder(name: str) -> None:
    with pytest.raises(UserError):
        yaml_file.load(None, {"run": name})


def test_every_shipped_config_loads() -> None:
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        settings = yaml_file.load(file, {})
        assert settings.explicit, f"{file.name} changes nothing"


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("[0-9]*.py")))
def test_help_answers_in_under_a_second(script: str) -> None:
    best = 9.0
    for _ in range(3):
        before = os.times()
        answer = subprocess.run(
            [sys.executable, ROOT / "scripts" / script, "--help"], capture_output=True, text=True, check=True
        )
        after = os.times()  # the script's own need: the machine may be busy
        best = min(best, after.children_user + after.children_system - before.children_user - before.children_system)
    assert "--config FILE" in answer.stdout
    assert best < 1.0


def test_an_unknown_flag_is_one_line_with_a_suggestion() -> None:
    answer = subprocess.run(
        [sys.executable, ROOT / "scripts/02_train_qlora.py", "--train.learning_rte", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "did you mean train.learning_rate?" in answer.stderr
