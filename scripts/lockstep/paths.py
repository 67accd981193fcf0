"""Where things are. `models/` and `data/hub/` hold downloads, `outputs/` what the stages make.

`LOCKSTEP_HOME` moves these three to another disk; the user's data files and configs stay where they are.
"""

import os
import re
from pathlib import Path

from lockstep.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
HOME = Path(os.environ.get("LOCKSTEP_HOME") or ROOT).resolve()
MODELS = HOME / "models"
OUTPUTS = HOME / "outputs"
DATASETS = HOME / "data" / "hub"
_OURS = ("models/", "outputs/", "data/hub/")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def check_name(name: str) -> str:
    """The name, if it is safe as the name of a folder. Raises ValueError otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(
            "must start with a letter or digit, continue with letters, digits, '.', '_' or '-', "
            "and have at most 96 characters"
        )
    return name


def model_dir(name: str) -> Path:
    """The folder of a downloaded model.

    Raises:
        UserError: `name` is not safe as the name of a folder.
    """
    try:
        return MODELS / check_name(name)
    except ValueError as error:
        raise UserError(f"the model's name {name!r} {error}: set --model.name") from error


def run_dir(run: str) -> Path:
    """The folder of a run, which holds those of its stages: data, adapter, merged, base, serve, eval."""
    return OUTPUTS / check_name(run)


def data_file(path: str) -> Path:
    """A path from the settings: absolute, or relative to the repository's root."""
    return ROOT / path


def label(path: Path) -> str:
    """How manifests and messages write a path: short, if it is one of ours."""
    if any(path.is_relative_to(ours) for ours in (MODELS, OUTPUTS, DATASETS)):
        return path.relative_to(HOME).as_posix()
    short = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
    # if LOCKSTEP_HOME is elsewhere, a file in the repository's own outputs/ must not be taken for one of that home
    return short if short and not short.startswith(_OURS) else path.as_posix()


def resolve_label(text: str) -> Path:
    """The path that `label` writes as `text`."""
    return HOME / text if text.startswith(_OURS) else ROOT / text


def make_parent(path: Path) -> None:
    """Create the folder that will hold `path`. Raises UserError where that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {label(path.parent)}: {error.strerror}") from error
