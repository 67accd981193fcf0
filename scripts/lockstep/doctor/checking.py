"""`--check`: which of the ten faults of the field somebody's own scripts, adapters, rows and commands have."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.doctor import (
    end_faults,
    evaluation_fault,
    length_faults,
    library_faults,
    script_text,
    serving_faults,
    template_faults,
)
from lockstep.doctor.findings import SEED_FAULT, Finding
from lockstep.doctor.project import Project
from lockstep.errors import UserError

MOST_FILES = 500  # of a folder
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz")
CONFIGS = (filenames.CONFIG, filenames.TOKENIZER_CONFIG, filenames.GENERATION_CONFIG, filenames.TOKENIZER)
LOOKS: tuple[Callable[[Project], Iterator[Finding]], ...] = (
    end_faults.missing_end,
    template_faults.two_templates,
    template_faults.tokens_by_hand,
    end_faults.hidden_end,
    length_faults.boundary_by_length,
    length_faults.silent_cut,
    serving_faults.no_such_option,
    serving_faults.other_weights,
    library_faults.does_not_run,
    evaluation_fault.never_measured,
)


def check(files: list[Path]) -> list[Finding]:
    """The faults in files and folders, in the order of their numbers.

    Raises:
        UserError: one of them cannot be read, or is nothing of this kind.
    """
    units: list[script_text.Unit] = []
    rows: list[Path] = []
    findings: list[Finding] = []
    for file in files:
        if not file.exists():
            raise UserError(
                f"no file {paths.label(file)}: --check takes scripts, notebooks, commands, adapters and rows"
            )
        if adapter := _adapter_of(file):
            from lockstep.doctor import adapter_faults

            findings += adapter_faults.check(adapter)
        elif model := _model_of(file):
            from lockstep.doctor import adapter_faults

            findings += adapter_faults.check_model(model)
        elif file.is_dir() and not _scripts_of(file):
            rows += _rows_of(file)
        elif file.is_file() and file.suffix.lower() in ROWS:
            rows.append(file)
        else:
            units += [unit for path in _scripts_of(file) for unit in script_text.units(path)]
    project = Project.of(units)
    findings += [finding for look in LOOKS for finding in look(project)]
    if rows:
        from lockstep.doctor import row_faults  # which needs packages that scripts do not

        findings += row_faults.check(rows)
    return sorted(findings, key=lambda finding: _number(finding.code))  # those of a number stay in their order


def _number(code: str) -> int:
    return int(code.removeprefix(SEED_FAULT)) if code.startswith(SEED_FAULT) else 99


def _adapter_of(file: Path) -> Path | None:
    if file.name == filenames.ADAPTER_CONFIG:
        return file.parent
    return file if file.is_dir() and (file / filenames.ADAPTER_CONFIG).is_file() else None


def _model_of(file: Path) -> Path | None:
    if file.name in CONFIGS:
        return file.parent
    holds = any((file / name).is_file() for name in (filenames.CONFIG, filenames.TOKENIZER_CONFIG))
    return file if file.is_dir() and holds else None


def _scripts_of(file: Path) -> list[Path]:
    if not file.is_dir():
        return [file]
    scripts = [
        path
        for path in sorted(file.rglob("*"))
        if path.suffix.lower() in script_text.CODE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(file).parts)
    ]
    if len(scripts) > MOST_FILES:
        raise UserError(f"{paths.label(file)} holds {len(scripts)} scripts: name the files that are meant")
    return scripts


def _rows_of(folder: Path) -> list[Path]:
    """The files of rows in a folder without scripts. Raises UserError where there are none."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ROWS and path.is_file() and path.name not in CONFIGS
    ]
    if not files:
        raise UserError(f"{paths.label(folder)} holds no script, adapter or rows: --check has nothing to look at there")
    return files[:MOST_FILES]
