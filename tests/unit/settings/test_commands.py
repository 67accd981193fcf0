"""Commands in messages: what a shell and make understand, with the config and the settings that they need."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from support.programs import ROOT

from lockstep.settings import commands, yaml_file

HARD = ["--data.system_prompt", "a \"b\" $HOME `c` 'd' \\e!", "--data.template", "my file.jinja"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch):
    def start(config: str | None, **typed: str) -> None:
        monkeypatch.setattr(commands, "_program", commands._Program(is_script=True))
        file = ROOT / config if config else None
        typed = {key.replace("__", "."): value for key, value in typed.items()}
        commands.remember(file, typed, yaml_file.load(file, typed))

    return start


def test_without_a_script_the_plain_command_is_named() -> None:
    assert commands.make("train", "--force") == "make train ARGS=--force"


@pytest.mark.parametrize(
    ("config", "typed", "goal", "words", "command"),
    [
        ("configs/demo.yaml", {}, "train", (), "make train"),
        (None, {}, "train", (), "make train CONFIG="),
        ("configs/gemma4_e4b_qlora.yaml", {}, "merge", ("--force",), "make merge CONFIG=configs/gemma4_e4b_qlora.yaml ARGS=--force"),
        ("configs/demo.yaml", {"run": "b", "serve__port": "8001"}, "train", (), 'make train ARGS="--run b"'),
        ("configs/demo.yaml", {"run": "b", "serve__port": "8001"}, "serve", (), 'make serve ARGS="--run b --serve.port 8001"'),
        ("configs/demo.yaml", {"run": "b", "lora__r": "8"}, "stop", (), 'make stop ARGS="--run b"'),
        ("configs/demo.yaml", {"serve__port": "1"}, "serve", ("--serve.port", "2"), 'make serve ARGS="--serve.port 2"'),
        ("configs/demo.yaml", {"model__revision": "null", "data__clean": "unicode,whitespace"}, "data", (),
         'make data ARGS="--model.revision null --data.clean unicode,whitespace"'),
    ],
)  # fmt: skip
def test_a_command_carries_what_its_goal_reads(started, config, typed, goal, words, command) -> None:
    started(config, **typed)
    assert commands.make(goal, *words) == command


def test_paths_are_named_from_where_make_runs(started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT / "configs")
    monkeypatch.setattr(commands, "_program", commands._Program(is_script=True))
    typed = {"data.train_file": "rows.jsonl"}
    commands.remember(Path("demo.yaml"), typed, yaml_file.load(Path("demo.yaml"), typed, Path.cwd()))
    assert commands.make("data") == 'make data ARGS="--data.train_file configs/rows.jsonl"'


def test_shell_and_make_hand_on_every_word_as_it_was(started, tmp_path: Path) -> None:
    (tmp_path / "my configs").mkdir()
    (tmp_path / "my configs/c $x.yaml").write_text("run: r\n")
    (tmp_path / "Makefile").write_text("CONFIG = none\ntrain:\n\t@printf '%s\\n' --config $(CONFIG) $(ARGS)\n")
    started(str(tmp_path / "my configs/c $x.yaml"), run="b")
    answer = subprocess.run(
        commands.make("train", *HARD), shell=True, cwd=tmp_path, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},  # of `make test`
    )  # fmt: skip
    assert answer.stdout.splitlines() == ["--config", f"{tmp_path}/my configs/c $x.yaml", *HARD, "--run", "b"]


def test_a_script_is_named_with_all_that_it_needs(started) -> None:
    started("configs/demo.yaml", run="b")
    words = shlex.split(commands.script("03_merge_lora.py", "--base"))
    assert words == [
        ".venv/bin/python",
        "scripts/03_merge_lora.py",
        "--base",
        "--config",
        "configs/demo.yaml",
        "--run",
        "b",
    ]


def test_what_comes_next_is_named_unless_make_goes_on_by_itself(started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    started("configs/demo.yaml", run="b")
    assert commands.following() == ""
    commands.then("serve", "evaluate")
    assert commands.following() == 'next: `make serve ARGS="--run b"`, `make evaluate ARGS="--run b"`'
    monkeypatch.setenv("MAKELEVEL", "2")
    assert commands.following() == ""
