"""Whose checkpoints a folder holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from lockstep.errors import Terminated, UserError
from lockstep.training import checkpoints


def task(**config: Any) -> dict[str, Any]:
    return {"config": config, "inputs": {"outputs/r/data": "1"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints.claim(tmp_path / "checkpoints", task(r=8), False)
    return tmp_path / "checkpoints"


def keep(folder: Path) -> Path:
    (folder / "checkpoint-4").mkdir()
    return folder / "checkpoint-4"


def test_another_task_is_refused_where_something_could_be_lost_and_only_there(folder: Path) -> None:
    checkpoints.claim(folder, task(r=4), False)
    kept = keep(folder)
    with pytest.raises(UserError, match="holds a training with other r: set them back to resume it"):
        checkpoints.claim(folder, task(r=8), False)
    with pytest.raises(UserError, match="with other processes"):
        checkpoints.claim(folder, task(r=4, processes=2), False)
    checkpoints.claim(folder, task(r=4), False)
    assert kept.exists()
    checkpoints.claim(folder, task(r=8), True)
    assert not kept.exists()


@pytest.mark.parametrize(
    "text", ["{", "[1]", "{}", '{"task": 1, "finished": false, "forced": false, "replaces": ""}', "[" * 100_000]
)
def test_a_damaged_note_is_one_line_and_force_starts_afresh(folder: Path, text: str) -> None:
    kept = keep(folder)
    (folder / "task.json").write_text(text)
    with pytest.raises(UserError, match=r"task\.json is damaged: --force starts afresh"):
        checkpoints.claim(folder, task(r=8), False)
    assert kept.exists()
    checkpoints.claim(folder, task(r=8), True)
    assert not kept.exists() and json.loads((folder / "task.json").read_text())["forced"]


def test_an_earlier_adapter_does_not_end_a_forced_training_and_its_own_does(folder: Path) -> None:
    checkpoints.claim(folder, task(r=8), True, "old")
    kept = keep(folder)
    checkpoints.close(folder, task(r=8), "old")
    checkpoints.claim(folder, task(r=8), True, "old")
    assert kept.exists()
    checkpoints.close(folder, task(r=8), "new")  # also where a kill came between the two
    checkpoints.claim(folder, task(r=8), True, "new")
    assert not kept.exists()


@pytest.mark.parametrize(
    ("saved", "claimed_by", "other", "goes_on"),
    [
        (False, False, {}, False),
        (True, False, {}, True),
        (True, False, {"force": True}, False),  # --force starts afresh
        (True, True, {"force": True}, True),  # it started so, and goes on
        (True, False, {"task": task(r=4)}, False),  # refused: they belong to another training
    ],
)
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Terminated("terminated after step 5 of 9")])
def test_an_interruption_promises_what_the_same_command_does(
    folder: Path, stop: BaseException, saved: bool, claimed_by: bool, other: dict[str, Any], goes_on: bool
) -> None:
    if claimed_by:
        checkpoints.claim(folder, task(r=8), True)
    if saved:
        keep(folder)
    with (
        pytest.raises(type(stop)) as raised,
        checkpoints.telling_what_remains(folder, **{"task": task(r=8), "force": False} | other),
    ):
        raise stop
    what, _, outlook = str(raised.value).partition("; ")
    assert what == (str(stop) or "interrupted")
    if goes_on:
        assert outlook.endswith("checkpoint-4 remains, and the same command goes on from there")
    else:
        assert outlook == "there is no checkpoint yet, so the same command starts from the beginning"
