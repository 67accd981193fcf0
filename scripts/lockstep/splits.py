"""Which files hold rows, and which of them are train, validation and test."""

import glob
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from lockstep import manifest, paths, records
from lockstep.config import Settings
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
    return {n for n in taken if n != manifest.FILE and PurePosixPath(n).name.lower() not in NO_ROWS}


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


def sources(settings: Settings, say: Callable[[str], None]) -> tuple[Settings, dict[str, list[Path]], list[Path]]:
    """The files of each split by the settings, and the inputs on which stage 01's digest hangs.

    A data set of a hub is downloaded if need be, and the files picked in it become settings.

    Args:
        say: is given a line about what comes.

    Raises:
        UserError: a file is not there, has a name that is no text, a pattern fits none, or two splits would read
            the same file.
    """
    data, inputs = settings.data, []
    names = {split: getattr(data, f"{split}_file") for split in SPLITS}
    if data.source == "files":
        root = paths.ROOT
    else:
        from lockstep import hub

        assert data.id
        root = hub.dataset(data.source, data.id, data.revision, say)
        inputs = [root]
        if "data.train_file" not in settings.explicit:
            picked = pick_splits(manifest.read(root).files)
            names |= {split: tuple(picked[split]) for split in SPLITS if f"data.{split}_file" not in settings.explicit}
            settings = settings.replace("data", {f"{split}_file": names[split] for split in SPLITS})
    files = {split: [path for name in names[split] for path in expand(root, name)] for split in SPLITS}
    everything = [path.resolve() for found in files.values() for path in found]
    if twice := next((path for path in everything if everything.count(path) > 1), None):
        raise UserError(f"{paths.label(twice)} is named twice: rows must stand in one split, and once")
    if odd := next((path for path in everything if records.printable(str(path)) != str(path)), None):
        raise UserError(
            f"{records.printable(paths.label(odd))}: this name is not UTF-8, and no ledger can hold it: rename it"
        )
    own = [path for found in files.values() for path in found if not _within(path, inputs)]
    return settings, files, inputs + own


def _within(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a folder's own hash covers the file."""
    return any(Path(os.path.normpath(path)).is_relative_to(folder) for folder in folders)


def expand(root: Path, name: str) -> Iterable[Path]:
    """The file of a name, or the files of a pattern, in order."""
    path = root / name
    if path.is_file():
        return [path]
    # Path.glob would read a pattern in the root's own name, and takes no absolute ones
    names = glob.glob(name, root_dir=root, recursive=True) if glob.has_magic(name) else []  # noqa: PTH207
    found = [root / one for one in sorted(names) if (root / one).is_file()]
    if not found:
        raise UserError(f"no file {paths.label(path)}: data/README.md shows what goes there")
    return found
