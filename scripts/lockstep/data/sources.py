"""The files that rows are read from: the user's own, or a data set of a hub, downloaded if need be."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import filenames, manifest
from lockstep.artifacts.stage import Stage
from lockstep.data import user_files
from lockstep.data.splits import SPLITS, data_files, pick_splits
from lockstep.download import hub
from lockstep.download.hub import PLACES, Repository
from lockstep.errors import UserError
from lockstep.settings.tree import Settings
from lockstep.text.unicode import printable


def resolve(settings: Settings, say: Callable[[str], None]) -> tuple[Settings, dict[str, list[Path]], list[Path]]:
    """The settings, the files of each split, and the inputs that stage 01's digest covers.

    A data set of a hub is downloaded if need be, and the files picked in it become settings.

    Args:
        say: prints a line for the user.

    Raises:
        UserError: a file does not exist or has a name that is no text, a pattern fits no file, or two splits would
            read the same one.
    """
    data, root = settings.data, paths.ROOT
    inputs: list[Path] = []
    if data.source != "files":
        assert data.id
        root = dataset(data.source, data.id, data.revision, say)
        inputs.append(root)
        if "data.train_file" not in settings.explicit:
            settings = _with_picked_files(settings, root)
    files: dict[str, list[Path]] = {}
    everything: list[Path] = []
    for split in SPLITS:
        files[split] = []
        for name in getattr(settings.data, f"{split}_file"):
            files[split] += user_files.files_of(root, name, split)
        everything += files[split]
    _refuse_names(everything)
    own = [path for path in everything if not _within(path, inputs)]
    return settings, files, inputs + own


def _with_picked_files(settings: Settings, root: Path) -> Settings:
    """The settings with the files of a data set, by their names, for those splits that nobody gave files."""
    picked = pick_splits(manifest.read(root).files)
    chosen = {}
    for split in SPLITS:
        setting = f"{split}_file"
        given = f"data.{setting}" in settings.explicit
        chosen[setting] = getattr(settings.data, setting) if given else tuple(picked[split])
    return settings.replace("data", chosen)


def _refuse_names(files: list[Path]) -> None:
    """Refuse a file that is named twice, and names that no file could hold. Raises UserError."""
    seen: set[Path] = set()
    for path in map(Path.resolve, files):
        if path in seen:
            raise UserError(f"{paths.label(path)} is named twice: rows must stand in one split, and once")
        if printable(str(path)) != str(path):
            raise UserError(
                f"{printable(paths.label(path))}: this name is not UTF-8, and no ledger can hold it: rename it"
            )
        seen.add(path)


def _within(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a folder's own hash covers the file."""
    return any(Path(os.path.normpath(path)).is_relative_to(folder) for folder in folders)


def dataset(source: str, id: str, revision: str | None, say: Callable[[str], None] = lambda text: None) -> Path:
    """The folder data/hub/ORG--NAME with a data set's files, downloaded unless it is there already.

    Args:
        source: hub or modelscope.
        id: ORG/NAME there.
        revision: branch, tag or commit; None takes the newest.
        say: prints how much there is to download, before it begins.

    Raises:
        UserError: no such data set or revision, no right to read it, no data file in it, no
            network, wrong bytes, or files in the folder that Lockstep did not write.
    """
    folder = _dataset_folder(source, id)
    config = {"source": source, "id": id, "revision": revision}
    stage = Stage("dataset", folder, config, [], keep_partial=True)
    another = (folder / filenames.MANIFEST).exists() and manifest.read(folder).config != config
    if not another and stage.finished():
        return folder
    repository = Repository("dataset", source, id, revision)
    with stage.writing() as work:
        stage.same_task_or_clear(work)
        listing = hub.look_up(repository, data_files)
        if not listing.files:
            raise UserError(f"{id} has no data file (.jsonl, .json, .csv, .tsv, .parquet){repository.hint('id')}")
        say(hub.check_room(listing.files, work))
        hub.fetch(repository, listing, work)
        stage.revision = listing.commit
    return folder


def _dataset_folder(source: str, id: str) -> Path:
    if source not in PLACES:
        raise UserError(f"--data.source {source!r}: must be one of {', '.join(PLACES)}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", id, re.ASCII):
        raise UserError(f"--data.id {id!r}: must be ORG/NAME, as in the address of the data set's page")
    try:
        return paths.DATASETS / paths.check_name(id.replace("/", "--"))
    except ValueError as error:
        raise UserError(f"--data.id {id!r} {error}") from error
