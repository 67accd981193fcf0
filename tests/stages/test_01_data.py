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
from support import corpus, programs, tiny
from support import hub as hub_stub

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


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_a_useless_file_is_refused_after_its_first_rows_with_what_helps(collate: Collate, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"ask": f"q {number}", "reply": "a"} for number in range(20_000)])
    near = ("--data.drop", "near_duplicate")  # which reads all rows once before
    for words in ((), near):
        said = error(collate("--data.train_file", "rows.jsonl", *words))
        assert "none of the first 500 rows of " in said and "rows.jsonl:1: missing_instruction" in said
        assert "its keys are ask, reply" in said and "--data.columns instruction=ask,output=reply" in said
    failed = tmp_path / "outputs/r/data.failed"
    (account,) = json.loads((failed / "ledger.json").read_text())["files"].values()
    assert account["lines"] == account["dropped"]["missing_instruction"] == 500
    assert {file.name for file in failed.iterdir()} >= {"rejects.jsonl", "preview.html", "quality.json"}
    mapped = ("--data.columns", "instruction=ask,output=reply", *NO_SHARES)
    (tmp_path / "short.jsonl").write_text("".join((tmp_path / "rows.jsonl").open().readlines()[:300]))
    assert collate("--data.train_file", "short.jsonl", *mapped).returncode == 0
    # whoever accepts that all rows are unusable gets them all read
    accepted = error(collate("--run", "all", "--data.train_file", "short.jsonl", "--data.max_reject_share", "1"))
    assert "no row is left for train (300 rows read" in accepted and "its keys are ask, reply" in accepted


def test_rows_too_long_at_the_start_are_no_reason_to_stop(collate: Collate, tmp_path: Path) -> None:
    rows = [{"instruction": f"q {number}", "output": "a" if number > 600 else "x" * 900} for number in range(4000)]
    write(tmp_path / "rows.jsonl", rows)
    words = ("--data.max_length", "200", "--data.near_duplicate_similarity", "null", *NO_SHARES)
    answer = collate("--data.train_file", "rows.jsonl", *words)
    assert answer.returncode == 0, answer.stderr
    assert "dropped: too_long 601" in answer.stdout


def test_what_rows_say_of_themselves_is_told_and_counted(collate: Collate, tmp_path: Path) -> None:
    bad = {"role": "assistant", "content": "BAD", "loss": False}
    turns = [
        {"role": "user", "content": "q"},
        bad,
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "ok"},
    ]
    write(tmp_path / "a.jsonl", [
        {"query": "I am {{NAME}}", "response": "good", "label": True, "id": 1}, {"query": "q", "response": "BAD", "label": False},
        {"query": "same", "response": "twice"}, {"query": "same", "response": "twice"}, {"messages": turns},
    ])  # fmt: skip
    write(tmp_path / "b.jsonl", [{"query": "I am {{NAME}}", "response": "good", "label": True, "id": 1},
        {"query": "q", "response": "BAD", "kto_tag": False}, {"query": "same", "response": "twice"}, {"query": "same", "response": "twice"}])  # fmt: skip
    write(tmp_path / "c.jsonl", [{"messages": turns}])
    answer = collate("--data.train_file", "b.jsonl,c.jsonl", *NO_SHARES)
    assert answer.returncode == 0, answer.stderr
    notes = [line.removeprefix("note: ") for line in answer.stdout.splitlines() if line.startswith("note: ")]
    assert "fields are read under other names: query → instruction, response → output" in notes
    assert "fields that nothing reads: id (1)" in notes
    assert any("1 rows hold a placeholder such as {{NAME}}" in line and "b.jsonl:1" in line for line in notes)
    assert any("1 rows have turns that are marked not to be trained" in line and "turn 2 of" in line for line in notes)
    assert any("1 rows are marked not to be trained (kto_tag: false; the first is" in line for line in notes)
    assert (
        "1 rows are repeated and one copy of each is kept: --data.drop garbled,in_two_splits keeps all copies" in notes
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models/tiny")
    for sample in split(tmp_path, "train"):
        assert "BAD" not in tokenizer.decode([label for label in sample["labels"] if label != -100])
    accounts = {Path(name).name: account for name, account in ledger(tmp_path)["files"].items()}
    assert accounts["b.jsonl"]["dropped"] == {"marked_untrained": 1, "duplicate": 1}
    assert accounts["b.jsonl"]["ignored"] == {"id": 1} and accounts["b.jsonl"]["noted"] == {"placeholder": 1}
    assert accounts["b.jsonl"]["renamed"] == {"query → instruction": 2, "response → output": 2}
    assert accounts["c.jsonl"]["noted"] == {"marked_turn": 1}
    # both kinds in one file: only one of them is its own
    said = error(collate("--run", "mixed", "--data.train_file", "a.jsonl", *NO_SHARES))
    assert "missing_instruction 3" in said or "missing_instruction 4" in said


def test_tables_give_the_rows_that_their_lines_give(collate: Collate, tmp_path: Path) -> None:
    """Parquet, Arrow, and JSON that was written from them, hold keys of other rows: none comes into the samples."""
    from datasets import Dataset

    template = tmp_path / "tools.jinja"
    template.write_text(corpus.TEMPLATE, encoding="utf-8")
    rows = []
    for number, (name, key) in enumerate([("add", "x"), ("weather", "city")] * 4):
        schema = {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}
        call = {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": {key: f"v{number}"}}}
        turns = [
            {"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "r", "tool_call_id": f"c{number}"}, {"role": "assistant", "content": "a"},
        ]  # fmt: skip
        rows.append(
            {"messages": turns, "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}]}
        )
    write(tmp_path / "rows.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    saved = Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_json(tmp_path / "written.jsonl")
    assert '"x":null' in (tmp_path / "written.jsonl").read_text(encoding="utf-8")
    expected: list[list[int]] = []
    for name in ("rows.jsonl", "rows.parquet", "saved", "written.jsonl"):
        words = ("--run", name, "--data.train_file", name, "--data.template", str(template), *NO_SHARES)
        answer = collate(*words)
        assert answer.returncode == 0, answer.stderr
        ids = [sample["input_ids"] for sample in split(tmp_path, "train", name)]
        expected = expected or ids
        assert ids == expected, name
        (account,) = ledger(tmp_path, name)["files"].values()
        assert account["noted"].get("nulls_left_out", 0) == (0 if name == "rows.jsonl" else 8), name
        assert ("nulls in tools or calls" in answer.stdout) == (name != "rows.jsonl")


def test_rows_are_rows_and_their_samples_stand_beside_them(collate: Collate, tmp_path: Path) -> None:
    """Where a template rewrites earlier turns, each answer is a sample of its own."""
    template = tmp_path / "last.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' now' if loop.last and m.role == 'user' }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        encoding="utf-8",
    )
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, "abcdef", strict=True)]
    write(tmp_path / "rows.jsonl", [{"messages": turns}, {"messages": turns[:2]}])
    answer = collate("--data.train_file", "rows.jsonl", "--data.template", str(template), *NO_SHARES)
    assert answer.returncode == 0, answer.stderr
    assert "train: 2 rows (4 samples), " in answer.stdout and len(split(tmp_path, "train")) == 4
    counts = ledger(tmp_path)["splits"]["train"]
    assert (counts["rows"], counts["samples"]) == (2, 4)
