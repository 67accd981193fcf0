"""Stage 01 with files that users really have."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow
import pytest
from conftest import Run
from pyarrow import parquet
from support import hub as hub_stub
from support import programs, tiny

Collate = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def common(tiny_model: Path) -> tuple[str, ...]:
    return ("--run", "r", "--model.source", "local", "--model.path", str(tiny_model), "--model.name", "tiny")


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory, common: tuple[str, ...]) -> Path:
    home = tmp_path_factory.mktemp("home")
    assert programs.run(home, "00_download_model.py", *common).returncode == 0
    return home


@pytest.fixture
def collate(stage: Run, downloaded: Path, common: tuple[str, ...], tmp_path: Path) -> Collate:
    shutil.copytree(downloaded / "models", tmp_path / "models", copy_function=shutil.copy2)
    return lambda *words: stage("01_data_collator.py", *common, *words)


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


def test_a_row_stays_in_its_split_when_the_template_changes(collate: Collate, tmp_path: Path) -> None:
    tiny.rows(tmp_path / "rows.jsonl", 60)
    for name in ("model", "instruction_zh"):
        answer = collate("--data.train_file", "rows.jsonl", "--run", name, "--data.template", name)
        assert answer.returncode == 0, answer.stderr
    for part in ("train", "validation", "test"):
        assert [row["row"] for row in split(tmp_path, part, "model")] == [
            row["row"] for row in split(tmp_path, part, "instruction_zh")
        ]


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
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models/tiny")
    rows = load_from_disk(tmp_path / "outputs/r/data/train")
    (account,) = json.loads((tmp_path / "outputs/r/data/ledger.json").read_text())["files"].values()
    assert account["truncated"]["rows"] == len(rows) > 0 and account["truncated"]["tokens"] > 0
    for row in rows:
        assert len(row["input_ids"]) == 24
        supervised = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(supervised) == row["messages"][-1]["content"] + "<|im_end|>"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no row is left for train (0 rows read, dropped: none; "),
        (b"\n\n", "no row is left"),
        (b"\x80\n" * 5, "5 of 5 rows were dropped"),
    ],
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


def ledger(home: Path, run: str = "r") -> Any:
    return json.loads((home / f"outputs/{run}/data/ledger.json").read_text(encoding="utf-8"))


def split(home: Path, name: str, run: str = "r") -> list[dict[str, Any]]:
    from datasets import load_from_disk

    return list(load_from_disk(home / f"outputs/{run}/data" / name))


def pair(number: int) -> dict[str, str]:
    return {"instruction": f"第{number}问：2024-01-0{number}？", "input": "", "output": f"答{number}：3.0, NaN, “是”。"}


NO_SHARES = ("--data.validation_share", "0", "--data.test_share", "0")


def test_many_files_of_every_format_become_one_data_set(collate: Collate, tmp_path: Path) -> None:
    rows = [pair(number) for number in range(1, 8)]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows[1:2], ensure_ascii=False, indent=1), encoding="utf-8")
    with (tmp_path / "c.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerow(rows[2])
    parquet.write_table(pyarrow.Table.from_pylist(rows[3:4]), tmp_path / "d.parquet")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows[4]).encode()))
    turns = [{"role": "user", "content": rows[5]["instruction"]}, {"role": "assistant", "content": rows[5]["output"]}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}]), tmp_path / "f.parquet")
    (tmp_path / "g, odd.json").write_text(json.dumps(rows[6:], ensure_ascii=False), encoding="utf-8")
    names = [f"{name}" for name in ("a.jsonl", "b.json", "c.csv", "d.parquet", "e.jsonl.gz", "f.parquet")]
    answer = collate("--data.train_file", ",".join(names), "--data.test_file", "g, odd.json", *NO_SHARES)
    assert answer.returncode == 0, answer.stderr
    told = [[message["content"] for message in row["messages"]] for row in split(tmp_path, "train")]
    assert told == [[row["instruction"], row["output"]] for row in rows[:6]]
    assert len(split(tmp_path, "test")) == 1
    assert sum(account["lines"] for account in ledger(tmp_path)["files"].values()) == 7
    pattern = collate("--run", "p", "--data.train_file", str(tmp_path / "*.parquet"), *NO_SHARES)
    assert pattern.returncode == 0, pattern.stderr
    assert [row["messages"][0]["content"] for row in split(tmp_path, "train", "p")] == [
        rows[3]["instruction"], rows[5]["instruction"]
    ]  # fmt: skip
    assert "no file" in error(collate("--run", "q", "--data.train_file", str(tmp_path / "*.tsv")))


def test_a_data_set_of_a_hub_by_its_id(collate: Collate, stage: Run, common: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    tiny.rows(folder / "data/train.jsonl", 30)
    tiny.rows(folder / "data/test.jsonl", 5, start=30)
    with hub_stub.serve(folder, programs.HUB_PORT):
        words = (*common, "--data.source", "hub", "--data.id", "org/tiny", "--data.validation_share", "0")
        answer = stage("01_data_collator.py", *words, **programs.HUB)
        assert answer.returncode == 0, answer.stderr
        assert {name: len(split(tmp_path, name)) for name in ("train", "validation", "test")} == {
            "train": 30, "validation": 0, "test": 5
        }  # fmt: skip
        named = ("--run", "named", "--data.train_file", "data/test.jsonl", "--data.test_share", "0")
        answer = stage("01_data_collator.py", *words, *named, **programs.HUB)
        assert answer.returncode == 0 and len(split(tmp_path, "train", "named")) == 5
    own = tmp_path / "own.jsonl"
    mixed = ("--run", "mixed", "--data.train_file", "data/train.jsonl", "--data.test_file", str(own))
    for start, code in ((50, 0), (60, 2)):  # a file of one's own beside a hub's: changed, it is not the same data
        tiny.rows(own, 5, start=start)
        answer = stage("01_data_collator.py", *words, *mixed)
        assert answer.returncode == code, answer.stderr
    assert "other inputs" in answer.stderr
    again = stage("01_data_collator.py", *words, **programs.HUB)  # the hub is gone
    assert "up to date" in again.stdout, again.stderr
    assert "an id" in error(collate("--data.source", "hub"))


def test_cleaning_is_off_unless_asked_for_and_then_on_record(collate: Collate, tmp_path: Path) -> None:
    rows = [{"instruction": "q1 ", "output": "schÃ¶n\x07"}, {"instruction": "q2", "output": "gut"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("--data.train_file", "rows.jsonl", *NO_SHARES)
    assert collate(*words, "--data.drop", "duplicate").returncode == 0
    assert split(tmp_path, "train")[0]["messages"][1]["content"] == "schÃ¶n\x07"
    assert (tmp_path / "outputs/r/data/changes.jsonl").read_text() == ""
    assert "garbled 1" in error(collate(*words, "--run", "g"))
    steps = "unicode,control_characters,whitespace"
    answer = collate(*words, "--run", "c", "--data.clean", steps)
    assert answer.returncode == 0, answer.stderr
    assert [m["content"] for m in split(tmp_path, "train", "c")[0]["messages"]] == ["q1", "schön"]
    (account,) = ledger(tmp_path, "c")["files"].values()
    assert account["changed"] == {"unicode": 1, "control_characters": 1, "whitespace": 1}
    lines = (tmp_path / "outputs/c/data/changes.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(json.loads(line)["line"], json.loads(line)["step"]) for line in lines] == [
        (1, "unicode"), (1, "control_characters"), (1, "whitespace")
    ]  # fmt: skip


def test_rows_that_stand_twice_or_in_two_splits(collate: Collate, tmp_path: Path) -> None:
    def write(name: str, numbers: list[int]) -> None:
        text = "".join(json.dumps(pair(number), ensure_ascii=False) + "\n" for number in numbers)
        (tmp_path / name).write_text(text, encoding="utf-8")

    write("train.jsonl", [1, 2, 2, 3, 4, 5])
    write("valid.jsonl", [3, 6])
    write("test.jsonl", [6, 7])
    files = [f"--data.{name}_file={name}.jsonl" for name in ("train", "test")] + ["--data.validation_file=valid.jsonl"]
    answer = collate(*files)
    assert answer.returncode == 0, answer.stderr
    dropped = {Path(name).stem: account["dropped"] for name, account in ledger(tmp_path)["files"].items()}
    assert dropped == {"train": {"duplicate": 1, "in_two_splits": 1}, "valid": {"in_two_splits": 1}, "test": {}}
    kept = collate(*files, "--run", "all", "--data.drop", "null")
    assert kept.returncode == 0, kept.stderr
    assert len(split(tmp_path, "train", "all")) == 6
    first = {"instruction": "皇上驾到，娘娘怎么说？", "output": "臣妾参见皇上，皇上万福金安。"}
    rows = [first, first | {"output": "臣妾参见皇上，皇上万福金康。"}, {"instruction": "天气", "output": "晴"}]
    (tmp_path / "near.json").write_text(json.dumps(rows), encoding="utf-8")
    near = ("--data.train_file=near.json", *NO_SHARES, "--data.drop", "near_duplicate")
    assert collate(*near, "--run", "near").returncode == 0
    (reject,) = (tmp_path / "outputs/near/data/rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(reject)["reason"] == "near_duplicate" and json.loads(reject)["detail"].endswith("near.json:1")
    assert "needs a near_duplicate_similarity" in error(
        collate(*files, "--data.drop", "near_duplicate", "--data.near_duplicate_similarity", "null")
    )


def test_a_damaged_file_stops_the_stage_and_leaves_its_account(collate: Collate, tmp_path: Path) -> None:
    text = json.dumps([pair(number) for number in range(1, 8)])
    (tmp_path / "rows.json").write_text(text[: len(text) // 2], encoding="utf-8")
    said = error(collate("--data.train_file", "rows.json", *NO_SHARES, "--data.max_reject_share", "1"))
    assert "rows.json is damaged: nothing after line or element 3 can be read" in said
    account = json.loads((tmp_path / "outputs/r/data.failed/ledger.json").read_text())["files"]
    assert [one["dropped"] for one in account.values()] == [{"broken_file": 1}]


def test_conversations_and_what_of_them_is_trained(collate: Collate, tmp_path: Path) -> None:
    talk = [{"from": "system", "value": "s"}, {"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"},
            {"from": "human", "value": "q2"}, {"from": "gpt", "value": "a2"}]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps([{"conversations": talk}] * 2), encoding="utf-8")
    words = ("--data.train_file", "rows.json", *NO_SHARES)
    for mode, count in {"all_turns": 2, "last_turn": 1, "prompt_too": 5}.items():
        answer = collate(*words, "--run", mode, "--data.supervise", mode)
        assert answer.returncode == 0, answer.stderr
        (row,) = split(tmp_path, "train", mode)
        assert row["labels"].count(2) == count  # <|im_end|>
    contract = json.loads((tmp_path / "outputs/all_turns/data/contract.json").read_text(encoding="utf-8"))
    assert len(contract["conversations"]) >= 30 and contract["special_ids"]["end_of_turn"] == 2
    thinking = error(collate(*words, "--run", "t", "--data.thinking", "false"))
    assert "no thinking flag" in thinking
