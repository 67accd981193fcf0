"""Steps in a process with limits: what each way to take too much, or to fail, looks like from outside."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.errors import UserError
from lockstep.model import limited_process
from lockstep.model.limited_process import Step

MEBIBYTE = 2**20


def burn() -> None:
    while True:
        pass


def fill() -> None:
    bytearray(4096 * MEBIBYTE)


def fail() -> None:
    raise ZeroDivisionError("\n  odd numbers\nand more")


def refuse() -> None:
    raise UserError("it is refused")


def die() -> None:
    os._exit(9)


def steps_of(folder: Path) -> Iterator[Step]:
    """The step that the folder's name asks for, between two that are sound."""
    work = {"burn": burn, "fill": fill, "fail": fail, "refuse": refuse, "die": die}.get(folder.name, bool)
    yield Step("first", 5, 512 * MEBIBYTE, (folder / "first").touch)
    yield Step("second", 1, 512 * MEBIBYTE, work)
    yield Step("third", 5, 512 * MEBIBYTE, (folder / "third").touch)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("burn", "the second of the model took too much time or memory"),
        ("fill", "the second of the model asks for more than 512 MiB"),
        ("fail", "this is no model that transformers can load: odd numbers"),
        ("refuse", "it is refused"),
        ("die", r"broke the library that reads it \(the process ended with 9\)"),
    ],
)
def test_the_first_step_that_fails_ends_the_process_and_is_named(tmp_path: Path, name: str, message: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(UserError, match=message):
        limited_process.run(steps_of, folder)
    assert (folder / "first").exists() and not (folder / "third").exists()


def test_all_steps_are_taken_where_none_fails(tmp_path: Path) -> None:
    limited_process.run(steps_of, tmp_path)
    assert (tmp_path / "third").exists()


def sleeping(folder: Path) -> Iterator[Step]:
    yield Step("sleeper", 1, 512 * MEBIBYTE, lambda: time.sleep(600))


def test_a_step_that_only_waits_ends_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_process, "WALL", 2)
    with pytest.raises(UserError, match="the sleeper of the model took too long to be looked at"):
        limited_process.run(sleeping, tmp_path)
