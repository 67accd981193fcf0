"""Answers for a person to accept or reject: a table that any spreadsheet opens, read back into the metrics.

The person writes into the column `accept`: yes or no (also y, n, 1, 0, 是, 否). Tuned answers only, in an
order that says nothing; the wanted answer stands beside them.
"""

import csv
import itertools
import json
import random
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic
from lockstep.errors import UserError
from lockstep.evaluation import proportions

COLUMNS = ("row", "question", "answer", "wanted", "accept", "remark")
YES, NO = {"yes", "y", "1", "true", "是", "对", "通过"}, {"no", "n", "0", "false", "否", "错", "不通过"}


def write(file: Path, predictions: Path, rows: int, seed: int) -> None:
    """A sheet of some rows; one that holds a person's marks is left alone, or kept as .old.csv where the answers are others now."""
    if file.exists() and any(row["accept"] for row in _rows(file)):
        if read(file, predictions):
            return
        names = (file.with_suffix(f".old{number if number > 1 else ''}.csv") for number in itertools.count(1))
        file.replace(next(name for name in names if not name.exists()))
    answered = _answered(predictions)
    chosen = random.Random(seed).sample(answered, min(rows, len(answered)))
    with atomic.replacing(
        file, newline="", encoding="utf-8-sig"
    ) as stream:  # the mark tells spreadsheets that it is UTF-8
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        for row in chosen:
            said = row["tuned"].get("answer", "")
            question = "\n".join(str(message["content"]) for message in row["messages"])
            table.writerow({"row": row["row"], "question": _plain(question), "answer": _plain(said), "wanted": _plain(row["wanted"])})  # fmt: skip


def read(file: Path, predictions: Path) -> dict[str, Any] | None:
    """What the person found: rows judged, accepted, the share with its 95 % interval; None where nobody judged.

    Marks of answers that the model does not give any more do not count.

    Raises:
        UserError: a mark that is neither yes nor no, or a table of another form.
    """
    if not file.exists():
        return None
    now = {(row["row"], _plain(row["tuned"].get("answer", "")).replace("\r\n", "\n")) for row in _answered(predictions)}
    marks = []
    for number, row in enumerate(_rows(file), 2):
        mark = row["accept"].strip().lower()
        if mark and mark not in YES | NO:
            raise UserError(f"{paths.label(file)}, line {number}: accept is {row['accept']!r}, and must be yes or no")
        if mark and (row["row"], row["answer"].replace("\r\n", "\n")) in now:
            marks.append(mark in YES)
    if not marks:
        return None
    low, high = proportions.wilson(sum(marks), len(marks), 0.95)
    return {"rows": len(marks), "accepted": sum(marks), "value": sum(marks) / len(marks), "ci95": [low, high]}


def _answered(predictions: Path) -> list[dict[str, Any]]:
    with predictions.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            found = list(csv.DictReader(stream))
    except UnicodeDecodeError as error:
        raise UserError(f"{paths.label(file)} is not UTF-8: save it as CSV UTF-8") from error
    if any(row.get("accept") is None for row in found):
        raise UserError(f"{paths.label(file)} has no column `accept`, or a row without it: move it away for a new one")
    return found


def _plain(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text
