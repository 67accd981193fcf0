"""Questions are asked whatever their rows say about training."""

import json
from pathlib import Path

from lockstep.client import question_file


def test_rows_that_are_not_to_be_trained_are_asked(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q1", "completion": "a", "label": False},
        {"instruction": "q2", "kto_tag": False, "weight": 0},
        {"messages": [{"role": "user", "content": "q3"}], "train": False},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    questions = list(question_file.read(file, "model"))
    assert [(question.messages[-1]["content"], question.reference) for question in questions] == [
        ("q1", "a"), ("q2", None), ("q3", None)
    ]  # fmt: skip
    assert not any(question.fault for question in questions)
