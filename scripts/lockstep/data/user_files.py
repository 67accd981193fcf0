"""Files and folders that a user's settings name: a wrong path is an error before anything is downloaded or computed."""

import glob
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import filenames, manifest
from lockstep.errors import UserError
from lockstep.prompts import template_source
from lockstep.settings.schema import Model
from lockstep.settings.tree import Settings

MISSING = 3  # exit code of --check: the stage's output is not there, and make runs the stage


def check_exit_code(settings: Settings, goal: str, folder: Path) -> int:
    """What a stage's --check answers: 0 where its output `folder` is complete, MISSING where it is not.

    Make then runs the stages from the first incomplete one up to the goal, so the paths of all of these are checked.

    Args:
        goal: the stage, a key of `manifest.MAKERS`.

    Raises:
        UserError: one of these stages would read a path that does not exist.
    """
    if manifest.looks_complete(folder):
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


def check_paths(settings: Settings, stage: str) -> None:
    """Refuse paths that one stage would read and that do not exist. Raises UserError."""
    data = settings.data
    if stage == "download" and settings.model.source == "local":
        model_folder(settings.model)
    if stage == "data":
        if data.source == "files":  # of a data set, the settings name files inside it
            for name in (*data.train_file, *data.validation_file, *data.test_file):
                files_of(paths.ROOT, name)
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


def files_of(root: Path, name: str) -> list[Path]:
    """The file of a name, or the files of a pattern, in order. Raises UserError where there are none.

    Args:
        root: the folder from which relative names start.
    """
    path = root / name
    if path.is_file():
        return [path]
    # Path.glob would read a pattern in the root's own name, and takes no absolute ones
    matches = glob.glob(name, root_dir=root, recursive=True) if glob.has_magic(name) else []  # noqa: PTH207
    files = [root / match for match in sorted(matches) if (root / match).is_file()]
    if not files:
        raise UserError(f"no file {paths.label(path)}: data/README.md shows what goes there")
    return files
