"""Settings from a YAML file and the command line, with errors that name the key, where it stands and the right one."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lockstep.errors import UserError
from lockstep.settings.tree import NULLS, SECTIONS, Settings, flatten, leaves
from lockstep.text.unicode import printable

TYPED = "on the command line"  # where a setting was given, if not in a file


def suggest(key: str) -> str:
    """' (did you mean x?)' for a misspelt key, or nothing."""
    names = [name for name, _ in leaves()]
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in names}
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not close:
        leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.7)
        close = [by_leaf[leaf[0]]] if leaf else []
    return f" (did you mean {close[0]}?)" if close else ""


class _StrictLoader(yaml.SafeLoader):
    """YAML's own loader lets the second of two equal keys win without a word, and reads `on` as a key True."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str) or keys.count(key) > 1:
                problem = "stands twice" if isinstance(key, str) else "is no text: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} {problem}", node.start_mark)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The same, but what is no date, number or flag after all (2024-13-45) is YAML's error, with its place."""
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r:.80} cannot be read ({error}): put text in quotes", node.start_mark
            ) from error


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UserError: no such file, not UTF-8, not YAML, or no mapping of names to values.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)
        flatten(tree if isinstance(tree, dict) else {})  # an anchor that holds itself has no end
    except OSError as error:
        raise UserError(f"cannot read the config {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the config {file} is not UTF-8 (byte {error.start})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"the config {file} is not YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"the config {file} must map setting names to values")
    for key in tree:
        if "." in key:
            section, leaf = key.split(".", 1)
            raise UserError(f"{key} in {file}: write `{leaf}` under a section `{section}:`")
    # a section whose lines are all commented out is an empty one
    return {k: {} if v is None and k in SECTIONS else v for k, v in tree.items()}


def load(file: Path | None, overrides: Mapping[str, str]) -> Settings:
    """Settings from a YAML file and command-line overrides.

    Args:
        file: a YAML file with what differs from the defaults, or None.
        overrides: dotted name → text, such as {"lora.r": "8"}; "null" clears an optional setting.

    Raises:
        UserError: an unknown, missing or ill-typed key; names the key, where it came from, and
            the nearest right key.
    """
    tree = read_yaml(file) if file else {}
    explicit = dict.fromkeys(flatten(tree), f"in {file}") | dict.fromkeys(overrides, TYPED)
    for key, text in overrides.items():
        if printable(text) != text:  # bytes that Python could not read
            raise UserError(f"--{key}: {text!r} is not UTF-8: rename it, or write it in UTF-8")
        *sections, leaf = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"{section} in {file} must be a section, not {place!r}")
        place[leaf] = None if text in NULLS else text
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, file, overrides)) from error
    settings._explicit = explicit
    return settings


def _explain(error: ValidationError, file: Path | None, overrides: Mapping[str, str]) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = next((k for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in overrides), "")
    key = key or ".".join(part for part in location if not part.startswith("function-"))
    where = f"--{key}" if key in overrides or not file else f"{key} in {file}"
    if first["type"] == "extra_forbidden":
        return f"{where}: no such setting{suggest(key)}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"{where}: {message[0].lower()}{message[1:]}{got}"
