"""Whether the present settings are those with which the folders of earlier stages were made.

An edited setting must not lead to the old model without a word. A config file is compared with what the same settings
were in the file when the folder was made: what the command line had added for that one stage is no edit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import filenames, manifest
from lockstep.artifacts.manifest import Manifest
from lockstep.errors import UserError
from lockstep.settings import commands, yaml_file
from lockstep.settings.tree import ConfigFile, Settings, leaves

# Settings that change what a training shows or keeps, and nothing of what it makes.
WITHOUT_EFFECT = frozenset(
    f"train.{name}"
    for name in (
        "logging_steps", "sample_rows", "sample_tokens", "save_steps", "save_total_limit", "dataloader_num_workers",
        "per_device_eval_batch_size",
    )
)  # fmt: skip
_VERBS = {"download": "fetched", "train": "trained", "merge": "merged"}
_SHOWN = 3  # settings in a message


@dataclass(frozen=True)
class Edit:
    """A setting that is another now than when a folder was made.

    Attributes:
        before, now: values as JSON.
        where: who says so now: a file, or the command line.
    """

    key: str
    before: Any
    now: Any
    where: str


def of_sections(config_file: ConfigFile, sections: Iterable[str]) -> ConfigFile:
    """What the file says of some sections only."""
    values = {key: value for key, value in config_file.values.items() if key.split(".")[0] in sections}
    return ConfigFile(path=config_file.path, values=values)


def edits(settings: Settings, config: Mapping[str, Any], then: ConfigFile | None) -> list[Edit]:
    """The settings that somebody gives otherwise now than when a folder was made.

    Args:
        config: that of the folder's manifest; `then` is what its config file said.
    """
    tree, differing = settings.model_dump(mode="json"), []
    in_file, in_old_file = (file.values if file else {} for file in (settings.config_file, then))
    same_file = bool(settings.config_file and then and settings.config_file.path == then.path)
    for key, _ in leaves():
        section, _, leaf = key.partition(".")
        if key in WITHOUT_EFFECT or not _is_used(section, config) or (leaf and leaf not in config[section]):
            continue
        before, now = (side[section][leaf] if leaf else side[section] for side in (config, tree))
        where = settings.explicit.get(key)
        is_as_it_was = key in in_file and key in in_old_file and in_file[key] == in_old_file[key]
        if where is None and same_file and key in in_old_file:
            where = f"by default, as {then.path if then else ''} no longer sets it"
        if where is None or before == now or (where != yaml_file.TYPED and is_as_it_was):
            continue
        differing.append(Edit(key, before, now, where))
    return differing


def _is_used(section: str, config: Mapping[str, Any]) -> bool:
    """Whether a stage with this config read a section, and its method has a use for it."""
    method = config.get("method", "qlora")
    idle = {"lora": method == "full", "quantization": method != "qlora"}
    return section in config and not idle.get(section, False)


def refuse_edits(settings: Settings, folder: Path, record: Manifest) -> None:
    """Raise UserError where a setting is another now than when `folder` was made; names it, and the ways on."""
    differing = edits(settings, record.config, record.config_file)
    if "config_file" not in record.model_fields_set:  # an earlier version did not keep it: its command line tells
        then = {word.split("=")[0] for word in record.argv}
        differing = [edit for edit in differing if edit.where == yaml_file.TYPED or f"--{edit.key}" not in then]
    if not differing:
        return
    for edit in differing:
        if missing := _missing_file(edit):
            before = commands.as_word(edit.before)
            raise UserError(
                f"--{edit.key}: no file {missing}; {paths.label(folder)} was made from {before}: name a file that is "
                f"there, or set {edit.key} back to go on"
            )
    shown = ", ".join(f"{edit.key} is {edit.now!r} {edit.where} and was {edit.before!r}" for edit in differing[:_SHOWN])
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    verb = _VERBS.get(record.stage, "made")
    words = [word for edit in differing for word in (f"--{edit.key}", commands.as_word(edit.before))]
    keep = f"ARGS={commands.quoted_arguments(words)}"
    raise UserError(
        f"{paths.label(folder)} was {verb} with other settings: {shown}{more}; to make it again, "
        f"{_first_to_make(folder, record, differing)}; to go on with what is there, set it back or add {keep}"
    )


def _missing_file(edit: Edit) -> str:
    """The first path of a setting for files of rows that leads nowhere; empty where all are there."""
    if not (edit.key.startswith("data.") and edit.key.endswith("_file") and edit.now):
        return ""
    names = edit.now if isinstance(edit.now, list) else [edit.now]
    return next((name for name in names if not any(_matches(paths.data_file(name)))), "")


def _matches(pattern: Path) -> Iterable[Path]:
    root = Path(pattern.anchor)
    return root.glob(str(pattern.relative_to(root)))


def _first_to_make(folder: Path, record: Manifest, differing: list[Edit]) -> str:
    """What to run for the first stage that reads one of these settings: later ones say in turn what they need."""
    if record.origin is not None:
        return "give stage 03 --adapter.path and --force again"
    if record.stage in ("train", "merge", "evaluate") and folder.parent.parent == paths.OUTPUTS:
        sections = {edit.key.split(".")[0] for edit in differing}
        if sections & {"model", "data"}:
            return manifest.again(folder.with_name(filenames.DATA))
        if record.stage == "merge" and sections - {"merge"}:
            return manifest.again(folder.with_name(filenames.ADAPTER))
    return manifest.again(folder)


def require(settings: Settings, folder: Path, stage: str) -> tuple[Settings, Manifest]:
    """The manifest of an input folder, checked as `manifest.require` does, and the settings that it was made with.

    Raises:
        UserError: also where the present settings are others.
    """
    record = manifest.require(folder, stage)
    refuse_edits(settings, folder, record)
    return settings.inherit(record.config), record


def notes(settings: Settings) -> list[str]:
    """What a program tells that does not make anything of the run: where its settings or its rows are others by now."""
    lines = []
    for name in (filenames.ADAPTER, filenames.MERGED):
        folder = settings.run_dir / name
        if (folder / filenames.MANIFEST).exists():
            try:
                refuse_edits(settings, folder, manifest.read(folder))
            except UserError as error:
                lines.append(str(error))
    return [*lines[:1], *filter(None, [newer_rows(settings.run_dir)])]


def newer_rows(run_dir: Path) -> str:
    """What to tell where a file of rows was changed after a run's data was made from it; empty where none was."""
    folder = run_dir / filenames.DATA
    if not manifest.looks_complete(folder):
        return ""
    for name, digest in manifest.read(folder).inputs.items():
        source = paths.resolve_label(name)
        if source.is_file() and manifest.sha256_of(source) != digest:
            return f"{name} was changed since {paths.label(folder)} was made from it: {manifest.again(folder)}"
    return ""
