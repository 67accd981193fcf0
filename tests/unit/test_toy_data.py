import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data, written by the script in a copy of data/ that also holds a user's own file."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copyfile(ROOT / "data/build_toy_dataset.py", folder / "build_toy_dataset.py")
    (folder / "train.jsonl").write_text("mine")
    subprocess.run([sys.executable, folder / "build_toy_dataset.py"], check=True, capture_output=True)
    return folder


def rows(toy: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (toy / "toy" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def orders(toy: Path, split: str) -> list[dict[str, object]]:
    return [json.loads(row["output"]) for row in rows(toy, split) if row["output"].startswith("{")]


def test_sizes_and_fields(toy: Path) -> None:
    sizes = {split: (len(rows(toy, split)), len(orders(toy, split))) for split in ("train", "validation", "test")}
    assert sizes["train"] >= (320, 240)
    assert sizes["validation"][0] >= 40
    assert sizes["test"] >= (80, 60)
    assert all(set(row) == {"instruction", "input", "output"} for row in rows(toy, "train"))
    persona = [row for row in rows(toy, "train") if not row["output"].startswith("{")]
    chinese = [row for row in persona if not row["output"].isascii()]
    assert len(chinese) * 2 == len(persona)


def test_held_out_orders_combine_what_training_never_does(toy: Path) -> None:
    def pairs(order: dict[str, object]) -> set[tuple[object, object]]:
        return set(itertools.combinations((order["customer"], order["item"], order["city"]), 2))

    seen = set().union(*(pairs(order) for order in orders(toy, "train")))
    values = set().union(*((o["customer"], o["item"], o["city"]) for o in orders(toy, "train")))
    for split in ("validation", "test"):
        for order in orders(toy, split):
            assert not pairs(order) & seen
            assert {order["customer"], order["item"], order["city"]} <= values


def test_no_question_is_asked_twice(toy: Path) -> None:
    asked = [
        (row["instruction"], row["input"]) for split in ("train", "validation", "test") for row in rows(toy, split)
    ]
    assert len(asked) == len(set(asked))


def test_every_answer_follows_from_its_question(toy: Path) -> None:
    for split in ("train", "validation", "test"):
        for row in rows(toy, split):
            if row["output"].startswith("{"):
                assert all(str(value) in row["input"] for value in json.loads(row["output"]).values())


def test_the_same_bytes_again_and_nothing_else_touched(toy: Path) -> None:
    before = {file.name: file.read_bytes() for file in (toy / "toy").iterdir()}
    subprocess.run([sys.executable, toy / "build_toy_dataset.py"], check=True, capture_output=True)
    assert {file.name: file.read_bytes() for file in (toy / "toy").iterdir()} == before
    assert (toy / "train.jsonl").read_text() == "mine"
