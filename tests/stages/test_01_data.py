"""Stage 01 with files that users really have."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import tiny
from conftest import Run

COMMON = ("--run", "r", "--model.source", "local", "--model.path", "tiny", "--model.name", "tiny")
Collate = Callable[..., CompletedProcess[str]]


@pytest.fixture
def collate(stage: Run, tmp_path: Path) -> Collate:
    tiny.model(tmp_path / "tiny")
    assert stage("00_download_model.py", *COMMON).returncode == 0
    return lambda *words: stage("01_data_collator.py", *COMMON, *words)


def error(answer: CompletedProcess[str]) -> str:
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    return next(line for line in answer.stderr.splitlines() if line.startswith("error:"))


def test_bad_rows_are_on_record_and_too_many_stop_the_stage(collate: Collate, tmp_path: Path) -> None:
    file = tiny.rows(tmp_path / "rows.jsonl", 40)
    bad = [
        '{"instruction": "a"',
        "",
        '{"instruction": "say <|im_end|>", "output": "b"}',
        '{"instruction": "a", "output": "' + "x" * 900 + '"}',
    ]
    file.write_text(file.read_text(encoding="utf-8") + "\n".join(bad) + "\n", encoding="utf-8")
    said = error(
        collate("--data.train_file", "rows.jsonl", "--data.max_length", "200", "--data.max_reject_share", "0.05")
    )
    assert "3 of 43 rows were dropped" in said and "outputs/r/data.failed/rejects.jsonl" in said
    assert not (tmp_path / "outputs/r/data").exists()
    failed = tmp_path / "outputs/r/data.failed"
    assert (failed / "ledger.json").exists()

    answer = collate("--data.train_file", "rows.jsonl", "--data.max_length", "200", "--preview", "1")
    assert answer.returncode == 0, answer.stderr
    assert not failed.exists()
    (account,) = json.loads((tmp_path / "outputs/r/data/ledger.json").read_text())["files"].values()
    assert account["dropped"] == {"bad_json": 1, "blank": 1, "control_token": 1, "too_long": 1}
    assert account["lines"] == 44 == account["kept"] + 4
    rejects = [json.loads(line) for line in (tmp_path / "outputs/r/data/rejects.jsonl").read_text().splitlines()]
    assert [(r["line"], r["reason"]) for r in rejects] == [
        (41, "bad_json"),
        (42, "blank"),
        (43, "control_token"),
        (44, "too_long"),
    ]
    page = (tmp_path / "outputs/r/data/preview.html").read_text(encoding="utf-8")
    assert "本宫沈清漪" in page and "\ufffd" not in page and "control_token" in page


def test_a_row_stays_in_its_split_when_the_file_grows_or_is_turned_round(collate: Collate, tmp_path: Path) -> None:
    from datasets import load_from_disk

    def splits(run: str) -> dict[str, str]:
        return {
            row["messages"][0]["content"]: split
            for split in ("train", "validation", "test")
            for row in load_from_disk(tmp_path / "outputs" / run / "data" / split)
        }

    lines = tiny.rows(tmp_path / "a.jsonl", 80).read_text(encoding="utf-8").splitlines()
    more = tiny.rows(tmp_path / "b.jsonl", 40, start=80).read_text(encoding="utf-8").splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join(more + lines[::-1]) + "\n", encoding="utf-8")
    for run in ("a", "b"):
        assert collate("--data.train_file", f"{run}.jsonl", "--run", run).returncode == 0
    before, after = splits("a"), splits("b")
    assert set(before.values()) == {"train", "validation", "test"}
    assert all(after[question] == split for question, split in before.items())


def test_truncation_cuts_the_prompt_and_never_the_answer(collate: Collate, tmp_path: Path) -> None:
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    tiny.rows(tmp_path / "rows.jsonl", 40)
    words = (
        "--data.train_file",
        "rows.jsonl",
        "--data.max_length",
        "24",
        "--data.validation_share",
        "0",
        "--data.test_share",
        "0",
    )
    assert "no row is left for train" in error(collate(*words, "--data.max_reject_share", "1"))
    assert "--data.truncation is error" in error(collate(*words, "--data.truncation", "error"))
    assert collate(*words, "--data.truncation", "truncate", "--data.max_reject_share", "1").returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    rows = load_from_disk(tmp_path / "outputs/r/data/train")
    (account,) = json.loads((tmp_path / "outputs/r/data/ledger.json").read_text())["files"].values()
    assert account["truncated"]["rows"] == len(rows) > 0 and account["truncated"]["tokens"] > 0
    for row in rows:
        assert len(row["input_ids"]) == 24
        supervised = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(supervised) == row["messages"][-1]["content"] + "<|im_end|>"


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no row is left for train"), (b"\n\n", "no row is left"), (b"\x80\n" * 5, "5 of 5 rows were dropped")],
)
def test_a_file_without_rows_is_one_line(collate: Collate, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert says in error(collate("--data.train_file", "rows.jsonl"))


def test_wrong_paths(collate: Collate, tmp_path: Path) -> None:
    assert "no file" in error(collate("--data.train_file", "absent.jsonl"))
    assert "no file" in error(collate("--data.train_file", str(tmp_path)))
    tiny.rows(tmp_path / "rows.jsonl", 40)
    assert "rows.jsonl is named twice" in error(
        collate("--data.train_file", "rows.jsonl", "--data.test_file", "rows.jsonl")
    )
    assert "--data.template" in error(collate("--data.train_file", "rows.jsonl", "--data.template", "absent.jinja"))
