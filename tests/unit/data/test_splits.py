import pytest

from lockstep import paths
from lockstep.data.splits import data_files, pick_splits
from lockstep.errors import UserError


@pytest.mark.parametrize(
    ("names", "train", "validation", "test"),
    [
        (["train.jsonl", "dev.jsonl", "test.jsonl"], ["train.jsonl"], ["dev.jsonl"], ["test.jsonl"]),
        (["data/TRAIN-1.parquet", "data/train-0.parquet"], ["data/TRAIN-1.parquet", "data/train-0.parquet"], [], []),
        (["b.json", "a.json", "my_eval.json"], ["a.json", "b.json"], ["my_eval.json"], []),
        (["x/train/0.csv", "x/val/0.csv", "x/test/0.csv"], ["x/train/0.csv"], ["x/val/0.csv"], ["x/test/0.csv"]),
        (["train.json", "notes.json", "latest.json"], ["train.json"], [], []),
        (["test/train.json", "train/valid.tsv.gz"], ["test/train.json"], ["train/valid.tsv.gz"], []),
        (["latest.json", "README.md", "manifest.json", "dataset_infos.json"], ["latest.json"], [], []),
        (["Validation.jsonl", "trained.jsonl"], ["trained.jsonl"], ["Validation.jsonl"], []),
    ],
)
def test_splits_are_known_by_words(names: list[str], train: list[str], validation: list[str], test: list[str]) -> None:
    expected = {"train": train, "validation": validation, "test": test}
    assert pick_splits(names) == expected == pick_splits(reversed(names))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["zh/train.parquet", "en/train.parquet"],
            r"train files are in several folders \(en, zh\).*--data\.train_file",
        ),
        (["zh/a.json", "en/a.json"], r"several folders \(en, zh\)"),
        (["train.json", "extra/train.json"], r"several folders \(\., extra\)"),
        (["train.json", "en/test.json", "zh/test.json"], r"test files .*\(en, zh\).*--data\.test_file"),
        (["train.json", "train.csv"], r"several formats \(train\.csv, train\.json\)"),
        ([f"{n}/train.json" for n in range(100, 120)], r"106, 107, …\)"),
        (["test.json"], r"--data\.train_file"),
        ([], r"--data\.train_file"),
    ],
)
def test_a_choice_is_left_to_the_user(names: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        pick_splits(names)


def test_data_files_are_known_by_their_endings() -> None:
    names = {"a.jsonl", "x/b.parquet", "c.tsv.gz", "x/manifest.json"}
    assert data_files(names | {"a.py", ".a.json", "x/.y/a.json", "a.jsonl.zip", "x/Dataset_Infos.json"}) == names


def test_the_folder_of_data_sets_has_a_label() -> None:
    folder = paths.DATASETS / "org--name"
    assert paths.label(folder) == "data/hub/org--name"
    assert paths.resolve_label("data/hub/org--name") == folder
