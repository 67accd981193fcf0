"""What `make demo` decides by itself; the whole of it runs in the gate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import demo
from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.artifacts.stage import Stage
from lockstep.model import networks
from lockstep.settings import yaml_file
from lockstep.settings.tree import Settings

ROWS: list[dict[str, Any]] = [
    {"wanted": '{"a": 1}', "base": {"error": "x"}, "tuned": {"answer": '{"a": 1}', "finish_reason": "stop"}},
    {"wanted": '{"a": 2}', "base": {"answer": "2"}, "tuned": {"answer": '{"a": 3}', "finish_reason": "length"}},
    {"wanted": "words", "base": {"answer": "words"}, "tuned": {"answer": "words", "finish_reason": "stop"}},
]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(paths, "HOME", tmp_path)
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path / "outputs")
    return yaml_file.load(paths.ROOT / demo.CONFIG, {})


def on(monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype) -> None:
    """As if this machine were another one."""
    monkeypatch.setattr(networks, "device", lambda: device)
    monkeypatch.setattr(networks, "compute_dtype", lambda setting, device: dtype)


def test_a_cpu_without_bfloat16_trains_one_epoch_and_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(monkeypatch, "cpu", torch.float32)
    words = demo.training_words(settings)
    assert words == ["--train.num_train_epochs", "1"]
    note = capsys.readouterr().out.strip()
    assert note.count("\n") == 0 and f'make train ARGS="{" ".join(words)}"' in note


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.bfloat16), ("cuda", torch.float16), ("mps", torch.float32)]
)
def test_other_machines_train_as_the_config_says(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    dtype: torch.dtype,
) -> None:
    on(monkeypatch, device, dtype)
    assert demo.training_words(settings) == [] and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(2.0, []), (1.0, ["--train.num_train_epochs", "1"]), (0.5, ["--train.num_train_epochs", "0.5"])],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_finished_training_keeps_its_epochs_and_so_is_up_to_date(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, epochs: float, expected: list[str], dtype: torch.dtype
) -> None:
    on(monkeypatch, "cpu", dtype)
    config = settings.sections("train")
    config["train"]["num_train_epochs"] = epochs
    with Stage("train", settings.run_dir / filenames.ADAPTER, config, []).writing():
        pass
    assert demo.training_words(settings) == expected
    again = yaml_file.load(paths.ROOT / demo.CONFIG, {"train.num_train_epochs": str(epochs)} if expected else {})
    assert Stage("train", settings.run_dir / filenames.ADAPTER, again.sections("train"), []).finished()


def test_the_figures_of_the_summary() -> None:
    assert demo.exact_match(ROWS, "tuned") == 0.5 and demo.exact_match(ROWS, "base") == 0  # orders only
    assert demo.stop_rate(ROWS, "tuned") == pytest.approx(2 / 3) and demo.stop_rate(ROWS, "base") == 0


def test_the_table_shows_reference_and_both_answers(capsys: pytest.CaptureFixture[str]) -> None:
    question = {"messages": [{"role": "user", "content": "first\nsecond"}]}
    long = json.dumps({"a": "x" * 200})
    row = question | {"wanted": long, "base": {"error": "x"}, "tuned": {"answer": "\x1b[31mred"}}
    demo.show([row])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  first second" and lines[2].endswith("…") and len(lines[2]) < 170
    assert lines[3].split() == ["base", "(no", "answer)"] and "\x1b" not in lines[4]
