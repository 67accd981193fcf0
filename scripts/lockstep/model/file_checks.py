"""A stranger's files as bytes, before a library reads them: regular files, of a sensible size, sound JSON, no code."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.errors import UserError
from lockstep.text import json_text

MEBIBYTE = 2**20
# Mebibytes of files that must be read as a whole: no real one is larger.
LARGEST = {
    filenames.TOKENIZER: 256,
    filenames.VOCABULARY: 64,
    filenames.MERGES: 64,
    filenames.WORDPIECES: 64,
    filenames.WEIGHTS_INDEX: 64,
    filenames.CHAT_TEMPLATE: 1,
}
LARGEST_JSON = 16  # of any other JSON file
# JSON files whose content must be an object.
OBJECTS = {filenames.CONFIG, filenames.GENERATION_CONFIG, filenames.TOKENIZER_CONFIG, filenames.TOKENIZER}


def check_files(files: Iterable[Path]) -> None:
    """Refuse files that lead elsewhere, are too large to be read as a whole, or are no sound JSON. Raises UserError."""
    for file in files:
        refuse_odd_file(file)
        check_content(file)


def refuse_odd_file(file: Path) -> None:
    """Refuse what is no file of the model's own: a pipe never ends, and a link may lead to the user's secrets."""
    folder = file.parent.resolve()
    # the Hub's cache keeps snapshots/COMMIT/NAME as links to blobs/
    own = {folder, *(parent / "blobs" for parent in folder.parents[1:2])}
    if not file.is_file() or (file.is_symlink() and file.resolve().parent not in own):
        raise UserError(f"{paths.label(file)} is no regular file of the model's folder: refused")


def check_content(file: Path) -> None:
    """Refuse a file that is too large, or no sound JSON though its name says so. Raises UserError."""
    limit = LARGEST.get(file.name, LARGEST_JSON if file.suffix == ".json" else None)
    if limit is not None and file.stat().st_size > limit * MEBIBYTE:
        raise UserError(f"{file.name} of the model has more than {limit} MiB, which no real one has: refused")
    if file.suffix == ".json":
        _check_json(file)


def _check_json(file: Path) -> None:
    try:
        content = json_text.loads_without_duplicates(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.name} of the model is not JSON ({error})") from error
    except RecursionError as error:
        raise UserError(f"{file.name} of the model is nested without end: refused") from error
    if file.name in OBJECTS and not isinstance(content, dict):
        raise UserError(f"{file.name} of the model holds no JSON object")
    if _asks_for_code(content):
        raise UserError(f"{file.name} asks to run code of the model's repository (auto_map): refused")


def _asks_for_code(content: Any) -> bool:
    """Whether there is an auto_map at any depth; a vocabulary may hold the word, with a number."""
    waiting = [content]  # and no recursion, which deep nesting would exhaust
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("auto_map"), dict | list | str):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False
