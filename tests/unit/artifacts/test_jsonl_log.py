"""A growing log: whatever its texts hold and wherever it was cut off, it can be read and added to."""

from pathlib import Path

import pytest

from lockstep.artifacts import jsonl_log
from lockstep.errors import UserError

TEXTS = ("plain", "行一\u2028行二\u2029\x85\x0b\x0c\r\n", "half: \ud83d", "你好")
RECORDS = [{"step": step, "answer": text} for step, text in enumerate(TEXTS)]


def test_it_can_be_cut_at_any_byte(tmp_path: Path) -> None:
    file, again = tmp_path / "whole.jsonl", tmp_path / "again.jsonl"
    ends = []
    for record in RECORDS:
        jsonl_log.append(file, record)
        ends.append(file.stat().st_size)
    whole = jsonl_log.read(file)
    assert [record["answer"] for record in whole] == list(TEXTS)
    for cut in range(ends[-1] + 1):
        again.write_bytes(file.read_bytes()[:cut])
        kept = sum(end <= cut for end in ends)
        assert jsonl_log.read(again) == whole[:kept]
        jsonl_log.forget_after(again, 2)
        jsonl_log.append(again, RECORDS[3])
        assert jsonl_log.read(again) == [*whole[: min(kept, 3)], whole[3]]


def test_where_there_is_none_there_is_nothing_to_read_or_forget(tmp_path: Path) -> None:
    assert jsonl_log.read(tmp_path / "absent.jsonl") == []
    jsonl_log.forget_after(tmp_path / "absent.jsonl", 5)
    assert not (tmp_path / "absent.jsonl").exists()


def test_what_is_no_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(UserError, match="is damaged"):
        jsonl_log.read(tmp_path / "a.jsonl")
