"""Files and folders that a user's settings name: a wrong path is an error before anything is downloaded or computed."""

import glob
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.data import readers
from lockstep.errors import UserError
from lockstep.prompts import template_source
from lockstep.settings.schema import Data, Model
from lockstep.settings.tree import Settings

_CURES = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV UTF-8"),
    **dict.fromkeys((".zip", ".zst", ".bz2", ".xz", ".7z", ".rar", ".tar", ".tar.gz", ".tgz"), "unpack it"),
}
MISSING = 3  # exit code of --check: the stage's output is not there, and make runs the stage


def check_exit_code(settings: Settings, goal: str, *folders: Path) -> int:
    """What a stage's --check answers: 0 where its output is complete, MISSING where it is not.

    Make then runs the stages from the first incomplete one up to the goal, so the paths of all of these are checked.

    Args:
        goal: the stage, a key of `manifest.MAKERS`.
        folders: its output, and what else must be there for those who ask.

    Raises:
        UserError: one of these stages would read a path that does not exist.
    """
    if all(map(manifest.looks_complete, folders)):
        return 0
    run = settings.run_dir
    outputs = {
        "evaluate": run / filenames.EVALUATION,
        "merge": run / filenames.MERGED,
        "train": run / filenames.ADAPTER,
        "data": run / filenames.DATA,
        "download": settings.model.folder,
    }
    stages = list(outputs)
    for stage in stages[stages.index(goal) :]:
        if stage == "train" and stage != goal and settings.adapter.path:
            continue  # nothing is trained: stage 03 takes that adapter in
        if stage != goal and manifest.looks_complete(outputs[stage]):
            break  # make asks no further, and a user may have removed what a finished stage had read
        check_paths(settings, stage)
    return MISSING


def is_whole_model(folder: Path) -> bool:
    """Whether a finished training lies there that trained all weights: to merge it takes no base."""
    return manifest.looks_complete(folder) and manifest.read(folder).config.get("method") == "full"


def check_paths(settings: Settings, stage: str) -> None:
    """Refuse paths that one stage would read and that do not exist. Raises UserError."""
    data = settings.data
    if stage == "download" and settings.model.source == "local":
        model_folder(settings.model)
    if stage == "data":
        if data.source == "files":  # of a data set, the settings name files inside it
            for split in ("train", "validation", "test"):
                for name in getattr(data, f"{split}_file"):
                    files_of(paths.ROOT, name, split)
        _check_template(data.template)
    if stage == "train" and settings.lora.start_from:
        _check_adapter("lora.start_from", settings.lora.start_from)
    if stage == "merge" and settings.adapter.path:
        _check_adapter("adapter.path", settings.adapter.path)
    if stage == "evaluate" and settings.evaluate.panel and not paths.data_file(settings.evaluate.panel).is_file():
        raise UserError(f"--evaluate.panel: no file {settings.evaluate.panel}")


def _check_template(setting: str) -> None:
    named, file = ("model", *template_source.BUILT_IN), paths.data_file(setting)
    if setting not in named and not file.is_file():
        names = ", ".join(named)
        raise UserError(
            f"--data.template {setting}: {paths.label(file)} is not there; known are {names}, or a .jinja file"
        )


def _check_adapter(setting: str, name: str) -> None:
    if not (paths.data_file(name) / filenames.ADAPTER_CONFIG).exists():  # what is odd about it, stage 03 says
        raise UserError(f"--{setting} {name} holds no adapter: {filenames.ADAPTER_CONFIG} cannot be read")


def model_folder(model: Model) -> Path:
    """The folder that --model.source local copies from. Raises UserError."""
    if model.path is None:
        raise UserError("--model.source local needs --model.path, a Hugging Face model folder")
    folder = paths.data_file(model.path)
    if not folder.is_dir():
        raise UserError(f"no folder {model.path}: set --model.path to a Hugging Face model folder")
    return folder


def files_of(root: Path, name: str, split: str = "train") -> list[Path]:
    """The file of a name, the files of a pattern or of a data set that was saved to a folder, in order.

    Args:
        root: the folder from which relative names start.
        split: which is taken of a folder that holds several.

    Raises:
        UserError: there are none, or a file's suffix is none that is read.
    """
    path = root / name
    if path.is_dir():
        return _saved(path, split)
    if path.is_file():
        files = [path]
    else:
        # Path.glob would read a pattern in the root's own name, and takes no absolute ones
        matches = glob.glob(name, root_dir=root, recursive=True) if glob.has_magic(name) else []  # noqa: PTH207
        files = [root / match for match in sorted(matches) if (root / match).is_file()]
    if not files:
        raise UserError(f"no file {paths.label(path)}: data/README.md shows what goes there")
    for file in files:
        check_suffix(file)
    return files


def check_suffix(file: Path) -> None:
    """Refuse a file whose name says that it holds no rows of a kind that is read. Raises UserError."""
    suffix = "".join(file.suffixes[-2:]) if file.suffix.lower() == ".gz" else file.suffix
    if not suffix or suffix.lower() == ".gz" or readers.ROWS.search(file.name):
        return
    cure = _CURES.get(suffix.lower(), "rename it if it holds one of these")
    raise UserError(
        f"{paths.label(file)}: files with the suffix {suffix} are not read, only .jsonl, .json, .csv, .tsv, .parquet "
        f"and .arrow: {cure}"
    )


def _saved(folder: Path, split: str) -> list[Path]:
    """The Arrow files of a folder that `save_to_disk` of `datasets` wrote, in order."""
    label = paths.label(folder)
    if (folder / filenames.SAVED_SPLITS).is_file():
        splits = _json(folder / filenames.SAVED_SPLITS).get("splits")
        if not isinstance(splits, list) or split not in splits:
            raise UserError(f"{label} holds no split {split} (it has {splits}): name one of its folders")
        folder = folder / split
    if not (folder / filenames.SAVED_STATE).is_file():
        raise UserError(f"no file {label}: it is a folder; name files in it, such as {label}/*.jsonl")
    state = _json(folder / filenames.SAVED_STATE)
    if state.get("_indices_data_files"):
        raise UserError(f"{label} was saved with a choice of rows apart: save it again with flatten_indices()")
    names = [entry.get("filename") for entry in state.get("_data_files") or () if isinstance(entry, dict)]
    files = [folder / name for name in names if isinstance(name, str) and Path(name).name == name]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(f"{label} is not complete: {missing[0] if missing else 'its Arrow files'} cannot be read")
    return files


def unused_splits(data: Data) -> list[str]:
    """A line for each saved folder among a run's own files that holds splits which no setting names."""
    lines = []
    folders = [paths.ROOT / name for name in data.train_file] if data.source == "files" else []
    for folder in folders:
        held = (
            _json(folder / filenames.SAVED_SPLITS).get("splits") if (folder / filenames.SAVED_SPLITS).is_file() else ()
        )
        unused = [
            split for split in held or () if split in ("validation", "test") and not getattr(data, f"{split}_file")
        ]
        if unused:
            words = " ".join(f"--data.{split}_file {paths.label(folder)}" for split in unused)
            lines.append(f"{paths.label(folder)} also holds {' and '.join(unused)}, which are not used: {words}")
    return lines


def _json(file: Path) -> dict[str, Any]:
    value = atomic.read_json(file)
    return value if isinstance(value, dict) else {}
