"""The ten faults as rows show them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lockstep.doctor import checking
from lockstep.errors import UserError

CHATML = "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}"
SOUND = [{"instruction": f"question {n}", "input": "", "output": f"The answer is {n}."} for n in range(20)]
LONG = "words and more words without any end to them " * 4


def write(folder: Path, name: str, rows: Iterable[Any]) -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def codes(*files: Path) -> list[str]:
    return [finding.code.removeprefix("seed_fault_") for finding in checking.check(list(files))]


def ids(*labels: list[int], mask: int = 1) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": [1, 2, *row], "labels": [-100, -100, *row], "attention_mask": [1] * (1 + len(row)) + [mask]}
        for row in labels
    ]


ENDED = [[5, 9], [6, 7, 9], [8, 9], [5, 5, 5, 9]]
CASES: dict[str, tuple[list[Any], list[str]]] = {
    "sound": (SOUND, []),
    "messages": ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 4, []),
    "rendered, and ended": ([{"text": CHATML.format(q=n, a="x") + "<|im_end|>\n"} for n in range(5)], ["2"]),
    "rendered, without an end": ([{"text": CHATML.format(q=n, a="x")} for n in range(5)], ["1", "2"]),
    "rendered with words": ([{"text": f"### Instruction:\n{n}\n\n### Response:\nx"} for n in range(5)], ["1", "2"]),
    "rendered and damaged": (
        [{"text": "<|start_header_id|>user<|end_header_id>\n\nq<|eot_id|>"} for n in range(3)],
        ["2", "3"],
    ),
    "text that is not rendered": ([{"text": "A story about ### nothing."}] * 3, ["data_rows"]),
    "a token written by hand": ([*SOUND, {"instruction": "a<|im_end|>", "output": "b"}], ["3"]),
    "a damaged token": ([*SOUND, {"instruction": "q", "output": "a<|im_end>"}], ["3"]),
    "a template in the questions": (
        [{"instruction": f"### Instruction:\n{n}\n\n### Response:", "output": f"x{n}."} for n in range(5)],
        ["2"],
    ),
    "a heading in an answer": ([{"instruction": f"q{n}", "output": f"## Answer: {n}."} for n in range(5)], []),
    "cut answers": ([*SOUND, *({"instruction": f"q{n}", "output": f"{n}{LONG}"[:150]} for n in range(5))], ["6"]),
    "long answers that end": (
        [*SOUND, *({"instruction": f"q{n}", "output": f"{n}{LONG}"[:149] + "."} for n in range(5))],
        [],
    ),
    "no answers": ([{"question": "a", "note": "b"}] * 5, ["data_rows"]),
    "ids": (ids(*ENDED), []),
    "ids without a common end": (ids([5, 1], [5, 2], [5, 3], [5, 4]), ["1"]),
    "ids whose end is hidden": (ids(*ENDED, mask=0), ["4"]),
    "ids that were cut": (ids(*ENDED, *ENDED, [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]), ["6"]),
    "lists of lists": ([{"input_ids": [[1]], "labels": [[1]]}] * 4, []),
    "labels of another length": ([{"input_ids": [1, 2, 3], "labels": [1, 2]}] * 2, ["9"]),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_have_the_faults_that_they_have(case: str, tmp_path: Path) -> None:
    rows, expected = CASES[case]
    file = write(tmp_path, "rows.jsonl", rows)
    assert codes(file) == expected
    assert all("\n" not in finding.text for finding in checking.check([file]))


def test_rows_that_stand_in_two_files(tmp_path: Path) -> None:
    train, test = (
        write(tmp_path, "train.jsonl", SOUND),
        write(tmp_path, "test.jsonl", [*SOUND[3:5], SOUND[0] | {"input": "x"}]),
    )
    (finding,) = checking.check([train, test])
    assert finding.code == "seed_fault_10" and finding.lines == ("1", "2") and "train.jsonl:4" in finding.what
    assert codes(tmp_path) == ["10"]  # a folder of rows


def test_lines_are_those_of_the_file_and_other_formats_are_read(tmp_path: Path) -> None:
    rows = write(tmp_path, "rows.jsonl", [*SOUND, {"instruction": "q", "output": "a<|im_end>"}])
    assert checking.check([rows])[0].lines == ("21",)
    table = tmp_path / "rows.csv"
    table.write_text("instruction,output\nq,a<|im_end>\n")
    assert codes(table) == ["3"]
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(SOUND))
    assert codes(array) == []


def test_rows_in_another_encoding_and_broken_files_are_told(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"instruction": "你好，请问你是谁", "output": "我是助手。"}\n'.encode("gbk") * 5)
    (finding,) = checking.check([file])
    assert finding.code == "data_rows" and "bad_utf8" in finding.what
    with pytest.raises(UserError):
        checking.check([tmp_path / "none.jsonl"])
