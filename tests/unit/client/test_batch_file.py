"""A batch's file: resumable at every byte, in order, and never half."""

import json
from pathlib import Path

import pytest

from lockstep.client.batch_file import AnswerRecord, BatchFile, key_of
from lockstep.errors import UserError


def answer(number: int) -> AnswerRecord:
    return {"answer": f"答 {number} \u2028 \ud83d"}


def run(output: Path, key: str = "k", count: int = 6, force: bool = False) -> list[AnswerRecord]:
    with BatchFile(output, key, count, force) as file:
        if not file.finished:
            for _ in file.fill(answer, 2):
                pass
            file.publish()
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def test_a_partial_file_cut_at_any_byte_goes_on_to_the_same_output(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.jsonl")
    assert [row["row"] for row in whole] == list(range(6)) and whole[3]["answer"] == answer(3)["answer"]
    with BatchFile(tmp_path / "a.jsonl", "k", 6) as file:
        for number in (4, 0, 5, 2):
            file.add({"row": number} | answer(number))
    partial = (tmp_path / ".a.jsonl.partial").read_bytes()
    for cut in range(len(partial) + 1):
        output = tmp_path / "b.jsonl"
        output.unlink(missing_ok=True)
        (tmp_path / ".b.jsonl.partial").write_bytes(partial[:cut])
        with BatchFile(output, "k", 6) as file:
            assert len(file.done) == max(0, partial[:cut].count(b"\n") - 1)
        assert run(output) == whole


def test_a_batch_of_no_rows_is_a_file_of_none(tmp_path: Path) -> None:
    for _ in range(2):
        assert run(tmp_path / "a.jsonl", count=0) == []
    assert not list(tmp_path.glob("*.partial"))


def test_each_batch_finds_its_own_unfinished_answers_again(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    keys = [key_of(name) for name in "abc"]
    for number, key in enumerate(keys):
        with BatchFile(output, key, 6) as file:
            for row in range(number + 1):
                file.add({"row": row} | answer(row))
    for number, key in [*enumerate(keys), *enumerate(keys)]:
        with BatchFile(output, key, 6) as file:
            assert file.done == set(range(number + 1))
    assert run(output, keys[0]) == run(tmp_path / "whole.jsonl")
    with pytest.raises(UserError, match="answers other questions"):  # whatever there is of its own
        run(output, keys[1])
    run(output, keys[1], force=True)
    run(output, keys[2], force=True)
    assert not list(tmp_path.glob(".*.partial"))


def test_rows_with_errors_are_done_until_the_batch_has_ended(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    with BatchFile(output, "k", 3) as file:
        file.add({"row": 1, "error": "no"})
    with BatchFile(output, "k", 3) as file:
        assert file.done == {1} and "1 of 3" in file.news
        asked = [row["row"] for row in file.fill(answer, 1)]
        assert asked == [0, 2]
        file.publish()
    with BatchFile(output, "k", 3) as file:
        assert file.done == {0, 2} and "1 rows again" in file.news
    assert [("error" in row) for row in run(output, count=3)] == [False] * 3
    with BatchFile(output, "k", 3) as file:
        assert file.finished
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.jsonl.done", ".a.jsonl.lock", "a.jsonl"]


def test_what_work_raises_stops_the_batch_and_keeps_what_was_begun(tmp_path: Path) -> None:
    def work(number: int) -> AnswerRecord:
        if number == 5:
            raise UserError("the server is gone")
        return answer(number)

    with BatchFile(tmp_path / "a.jsonl", "k", 100) as file:
        with pytest.raises(UserError, match="gone"):
            list(file.fill(work, 4))
        assert {0, 1, 2, 3, 4} <= file.done and len(file.done) < 100
        with pytest.raises(UserError, match="have not been asked"):
            file.publish()
    assert not (tmp_path / "a.jsonl").exists()


def test_two_at_once_and_foreign_files_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    with BatchFile(output, "k", 2), pytest.raises(UserError, match="another batch"):
        BatchFile(output, "k", 2)
    run(output, count=2)
    with pytest.raises(UserError, match="--force"):
        BatchFile(output, "other", 2)
    run(output, "other", 2, force=True)
    output.write_text("")
    with pytest.raises(UserError, match="--force"):
        BatchFile(output, "other", 2)


def test_keys_tell_batches_apart() -> None:
    assert key_of([1, "é"]) == key_of([1, "é"]) != key_of([1, "e"])
    assert key_of({"a": 1, "b": "\ud83d"}) == key_of({"b": "\ud83d", "a": 1})
