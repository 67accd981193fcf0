"""Commands to run next, as messages name them: each carries the config and the settings that it needs.

A message that says `make train` to somebody who works with a config of their own would train the demo. So every
command in a message is rendered here, for the command line of the present program.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths

if TYPE_CHECKING:
    from lockstep.settings.tree import Settings

MAKES_CONFIG = "configs/demo.yaml"  # that of the Makefile where nobody gives one
# Goal of make → the sections of the settings that it, or an earlier stage, reads, beside `run`. Others read no more.
_DATA = ("model", "data")
_TRAIN = (*_DATA, "method", "lora", "quantization", "train")
_MERGE = (*_TRAIN, "adapter", "merge")
_SECTIONS: dict[str, tuple[str, ...]] = {
    "download": ("model",),
    "data": _DATA,
    "train": _TRAIN,
    "merge": _MERGE,
    "serve": (*_MERGE, "serve"),
    "serve-lora": (*_MERGE, "serve"),
    "serve-detached": (*_MERGE, "serve"),
    "evaluate": (*_MERGE, "serve", "sampling", "evaluate"),
    "client": ("serve", "sampling"),
    "curl": ("serve", "sampling"),
    "chat": ("serve", "sampling", "ui"),
    "monitor": ("serve",),
}
_PLAIN = re.compile(r"[\w./:=,+-]*", re.ASCII)  # a word that no shell reads in another way


@dataclass
class _Program:
    """What the present program was started with.

    Args:
        is_script: whether a script runs at all.
        is_known: whether its command line has been read.
        config: the YAML file.
        typed: dotted name → value, of the settings on the command line.
        following: goals of make that come after what it does.
    """

    is_script: bool = False
    is_known: bool = False
    config: Path | None = None
    typed: dict[str, Any] = field(default_factory=dict)
    following: tuple[str, ...] = ()


_program = _Program()


def start() -> None:
    """Note that a script runs, whose command line will be read."""
    _program.is_script = True


def remember(config: Path | None, typed: Mapping[str, str], settings: "Settings") -> None:
    """Note what the script was started with; what it reads later is the command line of another program.

    Args:
        typed: the settings on the command line; `settings` has their values.
    """
    if not _program.is_script or _program.is_known:
        return
    tree = settings.model_dump(mode="json")
    _program.is_known, _program.config = True, config and config.resolve()
    _program.typed = {}
    for key in typed:
        section, _, leaf = key.partition(".")
        _program.typed[key] = tree[section][leaf] if leaf else tree[section]


def then(*goals: str) -> None:
    """Note what comes after the present stage, to be named once it has succeeded."""
    _program.following = goals


def following() -> str:
    """What comes after the present stage, to be told; empty where nothing does, or where make goes on by itself."""
    if not _program.following or os.environ.get("MAKELEVEL", "") not in ("", "0", "1"):
        return ""
    return f"next: {', '.join(f'`{make(goal)}`' for goal in _program.following)}"


def make(goal: str, *words: str) -> str:
    """`make GOAL` with the config and the settings of the present program that it needs, ready to be pasted.

    Args:
        words: more of its ARGS; a setting among them replaces the same one of the present program.
    """
    parts = ["make", goal]
    config = _config()
    if _program.is_known and config != MAKES_CONFIG:
        parts.append(f"CONFIG={quoted_arguments([config] if config else [])}")
    arguments = [*words, *_carried(_SECTIONS.get(goal, ()), without=words)]
    if arguments:
        parts.append(f"ARGS={quoted_arguments(arguments)}")
    return " ".join(parts)


def quoted_arguments(words: Sequence[str]) -> str:
    """Words of a command line as the value of ARGS or CONFIG: a shell reads it, then make, then a second shell."""
    return _quoted(shlex.join(words).replace("$", "$$"))


def script(name: str, *words: str) -> str:
    """The same for scripts/NAME, where make has no goal for it."""
    config = _config()
    given = ["--config", config] if config else []
    sections = tuple(dict.fromkeys(section for sections in _SECTIONS.values() for section in sections))
    return shlex.join([".venv/bin/python", f"scripts/{name}", *words, *given, *_carried(sections, without=words)])


def as_word(value: Any) -> str:
    """A JSON value of a setting as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, dict | bool):
        return json.dumps(value)
    return ",".join(value) if isinstance(value, list) else str(value)


def _config() -> str:
    """The config as it is named from the repository's root; empty where there is none."""
    file = _program.config
    if file is None:
        return ""
    return file.relative_to(paths.ROOT).as_posix() if file.is_relative_to(paths.ROOT) else str(file)


def _carried(sections: tuple[str, ...], without: tuple[str, ...]) -> list[str]:
    words: list[str] = []
    for key, value in _program.typed.items():
        if key.split(".")[0] in ("run", *sections) and f"--{key}" not in without:
            words += [f"--{key}", as_word(value)]
    return words


def _quoted(text: str) -> str:
    """The text as one word of a shell, in double quotes where it can be read so."""
    if _PLAIN.fullmatch(text):
        return text
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'
