"""Stage 01 on every file of the corpus: nothing crashes, nothing is lost, nothing is changed unasked."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from support import corpus, programs
from support.corpus import BROKEN, Case
from support.programs import ROOT

from lockstep.data import conversation_row, layouts, readers
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.near_duplicates import Sieve
from lockstep.data.records import Record
from lockstep.settings.schema import Data
from lockstep.text import json_text

pytestmark = pytest.mark.promise("A hostile file costs no row: each is kept as it is, or rejected for its reason")

CASES = corpus.cases()
BAD = [case for case in CASES if case.broken]
Collate = Callable[[str, Sequence[Path]], CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def collate(home: Path, tiny_model: Path) -> Collate:
    """Run stage 01 on files, with a config that keeps all that can be kept."""
    model = ("--model.source", "local", "--model.path", str(tiny_model), "--model.name", "tiny")

    def stage(name: str, *words: str) -> CompletedProcess[str]:
        return programs.run(home, name, *words, *model)

    def run(name: str, files: Sequence[Path]) -> CompletedProcess[str]:
        template, config = home / "tools.jinja", home / f"{name}.yaml"
        template.write_text(corpus.TEMPLATE, encoding="utf-8")
        settings = {
            "train_file": [str(file) for file in files], "validation_share": 0, "test_share": 0,
            "max_reject_share": 1, "max_length": 4096, "template": str(template),
        }  # fmt: skip
        config.write_text(yaml.safe_dump({"run": name, "data": settings}), encoding="utf-8")
        return stage("01_data_collator.py", "--config", str(config))

    assert stage("00_download_model.py", "--run", "model").returncode == 0
    return run


def json_lines(file: Path) -> list[dict[str, Any]]:
    # not splitlines: U+2028 stands inside texts
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def by_file(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [one for one in found if one["file"] == name] for name in {one["file"] for one in found}}


def differences(folder: Path, cases: Sequence[Case]) -> list[str]:
    """What the stage's books say of each file that differs from the promise."""
    from datasets import load_from_disk

    ledger = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))["files"]
    accounts = {Path(name).name: account for name, account in ledger.items()}
    rejects = by_file([one | {"file": Path(one["file"]).name} for one in json_lines(folder / "rejects.jsonl")])
    kept: dict[str, dict[int, tuple[str, ...]]] = {case.name: {} for case in cases}
    for sample in load_from_disk(folder / "train"):
        name, _, line = Path(sample["row"]).name.rpartition(":")
        kept[name][int(line)] = tuple(message["content"] for message in sample["messages"])
    found = [f"{name} was never given" for name in accounts.keys() - {case.name for case in cases}]
    for case in cases:
        mine, account = rejects.get(case.name, []), accounts.get(case.name)
        listed = [(one["line"], one["reason"]) for one in mine]
        if listed != case.rejects:
            found.append(f"{case.name}: rejected {listed}, not {case.rejects}: {[one['detail'] for one in mine]}")
        if kept[case.name] != case.kept:
            found.append(f"{case.name}: kept {kept[case.name]!r:.300}, not {case.kept!r:.300}")
        if account is None:
            found.append(f"{case.name}: not in the ledger")
        elif (account["lines"], account["kept"], account["dropped"]) != (
            len(case.expected), len(case.kept), Counter(reason for _, reason in case.rejects),
        ):  # fmt: skip
            found.append(f"{case.name}: the ledger says {account}")
        if case.name.endswith(".jsonl") and not case.data.startswith(b"\x1f\x8b") and case.data[:1] != b"[":
            written = case.data.removeprefix(corpus.BOM).split(b"\n")
            texts = {number: line.decode("utf-8", "backslashreplace") for number, line in enumerate(written, 1)}
            found += [f"{case.name}:{one['line']}: its text was changed" for one in mine
                      if one["reason"] != "too_large" and one["text"] != texts[one["line"]]]  # fmt: skip
    return found


def test_the_corpus_is_large_and_equal_each_time() -> None:
    code = (
        "from support import corpus; import hashlib; print(hashlib.sha256(repr(corpus.cases()).encode()).hexdigest())"
    )
    made = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len(CASES) >= 300 and len({case.name for case in CASES}) == len(CASES)


def test_every_record_is_kept_as_it_is_or_rejected_for_its_reason(
    collate: Collate, home: Path, record_property: Any
) -> None:
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    cases = [case for case in CASES if not case.broken]
    record_property("cases", len(cases))
    answer = collate("all", corpus.write(home / "files", cases))
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    folder = home / "outputs/all/data"
    found = differences(folder, cases)
    assert not found, "\n".join(found)

    tokenizer = AutoTokenizer.from_pretrained(home / "models/tiny")
    for sample in load_from_disk(folder / "train"):
        messages, _ = conversation_row.unpacked(sample)
        trained = tokenizer.decode([label for label in sample["labels"] if label != -100])
        if len(messages) == 2 and not messages[-1].keys() - {"role", "content"}:
            assert trained == messages[-1]["content"] + "<|im_end|>", sample["row"]
        if "_call_huge." in sample["row"] and len(messages) == 4:
            assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": int("1" * 400)}
    page = (folder / "preview.html").read_text(encoding="utf-8")
    assert page.count("</script>") == (ROOT / "scripts/lockstep/data/preview_page.html").read_text().count("</script>")


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_a_broken_file_gives_what_stands_before_the_damage(tmp_path: Path, case: Case) -> None:
    (file,) = corpus.write(tmp_path, [case])
    found: list[Any] = []
    for number, record in enumerate(readers.records(file), 1):
        row = layouts.parse(record, Data()) if isinstance(record, Record) else record
        found.append(tuple(m["content"] for m in row.messages) if isinstance(row, ConversationRow) else row.reason)
        assert (row.record.line if isinstance(row, ConversationRow) else row.line) == number
    assert tuple(found) == case.expected


@pytest.mark.parametrize(
    "ending", ["broken_missing_comma.json", "broken_csv_unclosed_last.csv", "broken_truncated.parquet", "broken_garbage_after.jsonl.gz"]
)  # fmt: skip
def test_a_broken_file_stops_the_stage_in_one_line(collate: Collate, home: Path, ending: str) -> None:
    case = next(case for case in BAD if case.name.endswith(ending))
    sound = next(case for case in CASES if case.name.endswith("_crlf.jsonl"))
    answer = collate(f"run-{case.name}", corpus.write(home / "broken", [sound, case]))
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    (said,) = [line for line in answer.stderr.splitlines() if line.startswith("error:")]
    assert case.name in said and "damaged" in said
    outputs = home / f"outputs/run-{case.name}"
    assert not (outputs / "data").exists()
    ledger = json.loads((outputs / "data.failed/ledger.json").read_text(encoding="utf-8"))["files"]
    account = next(account for name, account in ledger.items() if name.endswith(case.name))
    assert account["lines"] == len(case.expected) == account["kept"] + sum(account["dropped"].values())
    assert account["dropped"][BROKEN] == 1
    listed = json_lines(outputs / "data.failed/rejects.jsonl")
    assert [(one["line"], one["reason"]) for one in listed if one["file"].endswith(case.name)] == case.rejects


def test_a_file_name_that_is_no_text_is_one_line(collate: Collate, home: Path) -> None:
    folder = home / "names"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jsonl")).write_bytes(corpus.good()[0])
    answer = collate("names", [folder / "*.jsonl"])
    assert answer.returncode == 2 and "Traceback" not in answer.stderr, answer.stderr
    assert "is not UTF-8" in answer.stderr


def test_the_first_row_that_is_kept_stands_for_its_near_duplicates() -> None:
    made = [
        layouts.parse(Record("f", n, json_text.loads(f'{{"instruction": "q{n}", "output": "a"}}')), Data())
        for n in range(4)
    ]
    sieve = Sieve(("near_duplicate",), {"f:1": "f:0", "f:2": "f:0"})
    # row 0 was dropped for its length, say, and never came here
    found = [sieve.fault(row, "train") for row in made[1:] if isinstance(row, ConversationRow)]
    assert found == [None, ("near_duplicate", "of f:1"), None]


@pytest.mark.slow
def test_a_line_of_100_megabytes_costs_no_neighbour(collate: Collate, home: Path) -> None:
    case = corpus.enormous()
    answer = collate("enormous", corpus.write(home / "enormous", [case]))
    assert answer.returncode == 0, answer.stderr
    assert differences(home / "outputs/enormous/data", [case]) == []
