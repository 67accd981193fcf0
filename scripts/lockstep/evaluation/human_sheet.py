"""Answers for a person to accept or reject: a table that any spreadsheet opens, read back into the metrics.

The person writes yes or no (also y, n, 1, 0, 是, 否) into the column `accept`. The sheet holds tuned
answers only, in random order, each beside the reference (column `wanted`).
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
YES = {"yes", "y", "1", "true", "是", "对", "通过"}
NO = {"no", "n", "0", "false", "否", "错", "不通过"}
ENCODING = "utf-8-sig"  # the byte order mark tells spreadsheets that it is UTF-8


def write(file: Path, predictions: Path, rows: int, seed: int) -> None:
    """A sheet of randomly chosen rows.

    A sheet that a person has marked stays as it is. If its answers are not the model's answers any more,
    it is kept as .old.csv, and a new one takes its place.
    """
    if file.exists() and any(row["accept"] for row in _read_table(file)):
        if read(file, predictions):
            return
        _set_aside(file)
    records = _records(predictions)
    chosen = random.Random(seed).sample(records, min(rows, len(records)))
    with atomic.replacing(file, newline="", encoding=ENCODING) as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        for record in chosen:
            question = "\n".join(str(message["content"]) for message in record["messages"])
            table.writerow(
                {
                    "row": record["row"],
                    "question": _plain(question),
                    "answer": _plain(record["tuned"].get("answer", "")),
                    "wanted": _plain(record["wanted"]),
                }
            )


def _set_aside(file: Path) -> None:
    names = (file.with_suffix(f".old{number if number > 1 else ''}.csv") for number in itertools.count(1))
    file.replace(next(name for name in names if not name.exists()))


def read(file: Path, predictions: Path) -> dict[str, Any] | None:
    """What the person decided: rows judged, accepted, the share with its 95 % interval; None where nothing is marked.

    Marks of answers that the model no longer gives do not count.

    Raises:
        UserError: a mark is neither yes nor no, or the table has another form.
    """
    if not file.exists():
        return None
    # spreadsheets save line ends as \r\n
    current = {
        (record["row"], _plain(record["tuned"].get("answer", "")).replace("\r\n", "\n"))
        for record in _records(predictions)
    }
    accepted = []
    for number, row in enumerate(_read_table(file), 2):  # line 1 is the header
        mark = row["accept"].strip().lower()
        if mark and mark not in YES | NO:
            raise UserError(f"{paths.label(file)}, line {number}: accept is {row['accept']!r}, and must be yes or no")
        if mark and (row["row"], row["answer"].replace("\r\n", "\n")) in current:
            accepted.append(mark in YES)
    if not accepted:
        return None
    low, high = proportions.wilson(sum(accepted), len(accepted), 0.95)
    return {
        "rows": len(accepted),
        "accepted": sum(accepted),
        "value": sum(accepted) / len(accepted),
        "ci95": [low, high],
    }


def _records(predictions: Path) -> list[dict[str, Any]]:
    with predictions.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _read_table(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding=ENCODING, newline="") as stream:
            rows = list(csv.DictReader(stream))
    except UnicodeDecodeError as error:
        raise UserError(f"{paths.label(file)} is not UTF-8: save it as CSV UTF-8") from error
    if any(row.get("accept") is None for row in rows):
        raise UserError(
            f"{paths.label(file)} lacks the column `accept`, or a row lacks it: move the file away for a new one"
        )
    return rows


def _plain(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text
