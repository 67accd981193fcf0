"""Which files hold rows, and which of them are train, validation and test."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from lockstep.artifacts import filenames
from lockstep.errors import UserError

SPLITS = ("train", "validation", "test")

ROWS = re.compile(r"\.(jsonl|json|csv|tsv|parquet)(\.gz)?$", re.IGNORECASE)
# JSON that describes a data set and holds no rows.
NO_ROWS = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "configuration.json"})
WORDS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


def data_files(names: Iterable[str]) -> set[str]:
    """The files of a data set that can hold rows: by their endings, in any folder; none that is hidden."""
    taken = {name for name in names if ROWS.search(name) and not re.search(r"(^|/)\.", name)}
    return {n for n in taken if n != filenames.MANIFEST and PurePosixPath(n).name.lower() not in NO_ROWS}


def pick_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Which of a repository's data files are train, validation and test, by the words in their paths.

    Files without such a word are train where no file says `train`. A split may be empty, but for train.

    Raises:
        UserError: nothing to train on, or a split's files lie in several folders or formats, so
            that only the user can know which are meant.
    """
    found: dict[str, list[str]] = {split: [] for split in WORDS}
    plain: list[str] = []
    for name in sorted(data_files(names)):
        found.get(_split_of(name), plain).append(name)
    found["train"] = found["train"] or plain
    if not found["train"]:
        raise UserError("no file of the data set is for training: name one with --data.train_file")
    for split, files in found.items():
        _refuse_choice(split, files)
    return found


def _split_of(name: str) -> str:
    """The split that a path names; a word nearer to its end counts more. Empty where there is none."""
    for part in reversed(name.lower().split("/")):
        words = re.split(r"[-_.]", part)
        for split, known in WORDS.items():
            if not set(known).isdisjoint(words):
                return split
    return ""


def _refuse_choice(split: str, files: list[str]) -> None:
    """Files in one folder are shards of one table; other folders and formats are other tables, or copies."""
    folders = sorted({PurePosixPath(name).parent.as_posix() for name in files})
    stems: dict[str, list[str]] = {}
    for name in files:
        stems.setdefault(ROWS.sub("", name), []).append(name)
    copies = next((same for same in stems.values() if len(same) > 1), [])
    if len(folders) < 2 and not copies:
        return
    choices = folders if len(folders) > 1 else copies
    shown = ", ".join(choices[:8]) + (", …" if len(choices) > 8 else "")
    where = "folders" if len(folders) > 1 else "formats"
    more = "" if split == "train" else f" and --data.{split}_file"
    raise UserError(
        f"the {split} files are in several {where} ({shown}): name those you mean with --data.train_file{more}"
    )
