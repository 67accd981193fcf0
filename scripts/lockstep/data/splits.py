"""Which files hold rows, which of them are train, validation and test, and which split a row of a file belongs to."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from lockstep.artifacts import filenames
from lockstep.data.conversation_row import ConversationRow, canonical
from lockstep.errors import UserError
from lockstep.prompts import template_source
from lockstep.settings.schema import Data

SPLITS = ("train", "validation", "test")

ROWS = re.compile(r"\.(jsonl|json|csv|tsv|parquet)(\.gz)?$", re.IGNORECASE)
# JSON that describes a data set and holds no rows.
NO_ROWS = frozenset({"dataset_infos.json", "dataset_info.json", filenames.SAVED_SPLITS, "configuration.json"})
WORDS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


def split_of(row: ConversationRow, data: Data, own: str) -> str:
    """The split of a row: that of its file, or of a row in train_file a share by the hash of its text.

    By the hash every row keeps its split when others are added or the file is sorted anew.

    Args:
        own: the split of the row's file.
    """
    if own != "train":
        return own
    # an input stands under another mark with another template, and must not change its split
    text = canonical(row).replace(json.dumps(template_source.INPUT_MARK, ensure_ascii=False)[1:-1], "\\n")
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    validation = 0.0 if data.validation_file else data.validation_share
    test = 0.0 if data.test_file else data.test_share
    if place < validation:
        return "validation"
    return "test" if place < validation + test else "train"


def data_files(names: Iterable[str]) -> set[str]:
    """The files of a data set that can hold rows: by their endings, in any folder, but no hidden ones."""
    files = set()
    for name in names:
        hidden = re.search(r"(^|/)\.", name)
        describes = name == filenames.MANIFEST or PurePosixPath(name).name.lower() in NO_ROWS
        if ROWS.search(name) and not hidden and not describes:
            files.add(name)
    return files


def pick_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Which of a repository's data files are train, validation and test, by the words in their paths.

    Files without such a word are train where no file says `train`. Only train must not be empty.

    Raises:
        UserError: nothing to train on, or a split's files lie in several folders or formats, so
            that only the user can know which are meant.
    """
    picked: dict[str, list[str]] = {split: [] for split in WORDS}
    plain: list[str] = []
    for name in sorted(data_files(names)):
        picked.get(_split_in_path(name), plain).append(name)
    picked["train"] = picked["train"] or plain
    if not picked["train"]:
        raise UserError("no file of the data set is for training: name one with --data.train_file")
    for split, files in picked.items():
        _refuse_choice(split, files)
    return picked


def _split_in_path(name: str) -> str:
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
