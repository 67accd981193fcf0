from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from lockstep.data import sample_question
from lockstep.data.sample_question import LONGEST


def save(run: Path, split: str, *conversations: list[tuple[str, str]]) -> None:
    rows = [[{"role": role, "content": text, "extra": None} for role, text in turns] for turns in conversations]
    Dataset.from_dict({"messages": rows, "row": ["x"] * len(rows)}).save_to_disk(str(run / "data" / split))


def asked(text: str, system: str = "") -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]


LONG, ANSWER = "长" * (LONGEST + 1), ("assistant", "a")


@pytest.mark.parametrize(
    ("splits", "question"),
    [
        ({}, None),
        ({"train": [[("user", "t"), ANSWER]]}, asked("t")),
        ({"train": [[("user", "t"), ANSWER]], "validation": [[("user", "v"), ANSWER]]}, asked("v")),
        ({"validation": [[("user", "v"), ANSWER]], "test": [[("user", "你是谁？\n快说"), ANSWER]]}, asked("你是谁？\n快说")),
        ({"test": [[("system", "s"), ("user", "u"), ANSWER, ("user", "u2"), ANSWER]]}, asked("u", "s")),
        ({"test": [[("user", LONG), ANSWER], [("user", "short"), ANSWER]]}, asked("short")),
        ({"test": [[("user", LONG), ANSWER]]}, asked("长" * LONGEST + "…")),
        ({"test": [[("user", " "), ANSWER], [("user", "a"), ("tool", "b"), ANSWER]]}, None),
    ],
)  # fmt: skip
def test_the_first_question_that_is_short_of_a_split_that_was_not_trained_on(
    tmp_path: Path, splits: dict[str, Any], question: Any
) -> None:
    for split, conversations in splits.items():
        save(tmp_path, split, *conversations)
    assert sample_question.of_run(tmp_path) == question


def test_damaged_files_give_no_question(tmp_path: Path) -> None:
    save(tmp_path, "test", [("user", "u"), ANSWER])
    (file,) = (tmp_path / "data/test").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:40])
    assert sample_question.of_run(tmp_path) is None


@pytest.mark.parametrize("unit", ["e\u0301", "👩‍💻", "👍🏽", "🇨🇳", "字", "no "])
def test_a_text_is_shortened_between_what_is_drawn_as_one(unit: str) -> None:
    for before in range(len(unit) + 1):
        text = "x" * before + unit * LONGEST + "end"
        cut = sample_question.shortened(text)
        assert LONGEST // 2 < len(cut) <= LONGEST + 1 and cut.endswith("…")
        assert not (cut[before:-1] + " " * unit.endswith(" ")).replace(unit, "")
    assert sample_question.shortened("short") == "short"
