import json
from pathlib import Path

import pytest

from lockstep.errors import UserError
from lockstep.evaluation import human_sheet


def predictions(folder: Path, answers: list[str]) -> Path:
    file = folder / "predictions.jsonl"
    rows = [
        {
            "row": f"t:{n}",
            "messages": [{"role": "user", "content": "问 1\n2"}],
            "wanted": "w",
            "tuned": {"answer": answer},
        }
        for n, answer in enumerate(answers)
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def mark(file: Path, marks: list[str]) -> None:
    """Write marks into the rows, as a spreadsheet saves them."""
    rows = human_sheet._read_table(file)
    lines = [",".join(human_sheet.COLUMNS)]
    for row, accept in zip(rows, marks, strict=False):
        cells = {**row, "accept": accept}
        lines.append(
            ",".join('"' + cells[name].replace("\n", "\r\n").replace('"', '""') + '"' for name in human_sheet.COLUMNS)
        )
    file.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig", newline="")


def test_marks_are_read_back_and_stay(tmp_path: Path) -> None:
    answers, file = predictions(tmp_path, ["一行\n两行", "=1+1", "c", "d"]), tmp_path / "sheet.csv"
    human_sheet.write(file, answers, 4, seed=0)
    assert human_sheet.read(file, answers) is None
    assert all(
        not row["answer"].startswith("=") for row in human_sheet._read_table(file)
    )  # no formula for a spreadsheet
    mark(file, ["yes", "否", "Y", ""])
    judged = human_sheet.read(file, answers)
    assert judged and (judged["rows"], judged["accepted"]) == (3, 2)
    assert judged["ci95"][0] < 2 / 3 < judged["ci95"][1]
    before = file.read_bytes()
    human_sheet.write(file, answers, 4, seed=1)
    assert file.read_bytes() == before


def test_marks_of_another_models_answers_do_not_count_and_are_kept_beside(tmp_path: Path) -> None:
    file = tmp_path / "sheet.csv"
    human_sheet.write(file, predictions(tmp_path, ["a", "b"]), 2, seed=0)
    mark(file, ["yes", "yes"])
    other_answers = predictions(tmp_path, ["x", "y"])
    assert human_sheet.read(file, other_answers) is None
    human_sheet.write(file, other_answers, 2, seed=0)
    assert {row["answer"] for row in human_sheet._read_table(file)} == {"x", "y"}
    mark(file, ["no", "no"])
    human_sheet.write(file, predictions(tmp_path, ["v", "w"]), 2, seed=0)  # neither's marks are lost
    assert "yes" in (tmp_path / "sheet.old.csv").read_text(encoding="utf-8-sig")
    assert "no" in (tmp_path / "sheet.old2.csv").read_text(encoding="utf-8-sig")


def test_what_is_no_mark_is_one_line(tmp_path: Path) -> None:
    answers, file = predictions(tmp_path, ["a"]), tmp_path / "sheet.csv"
    human_sheet.write(file, answers, 1, seed=0)
    mark(file, ["maybe"])
    with pytest.raises(UserError, match="line 2: accept is 'maybe', and must be yes or no"):
        human_sheet.read(file, answers)
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="lacks the column `accept`"):
        human_sheet.read(file, answers)
    file.write_bytes("accept\n是\n".encode("gb18030"))
    with pytest.raises(UserError, match="is not UTF-8"):
        human_sheet.read(file, answers)
