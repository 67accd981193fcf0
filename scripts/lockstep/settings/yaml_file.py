"""Settings from a YAML file and the command line. Errors name the key, where it was given, and the nearest one."""

import copy
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lockstep import paths
from lockstep.errors import UserError
from lockstep.settings import field_words
from lockstep.settings.fields import holds_file_paths
from lockstep.settings.tree import NULLS, SECTIONS, ConfigFile, Settings, flatten, leaves
from lockstep.text.unicode import printable

TYPED = "on the command line"  # where a setting was given, if not in a file
FILE_KEYS = frozenset(name for name, field in leaves() if holds_file_paths(field))


def suggest(key: str, value: Any = None) -> str:
    """' (did you mean x?)' for a misspelt key, or for what other tools call it; or nothing.

    Args:
        value: what was given to it; a mapping is a section.
    """
    leaf = key.rsplit(".", 1)[-1].lower().replace("-", "_")
    if isinstance(value, Mapping):
        near = difflib.get_close_matches(leaf, SECTIONS, n=1, cutoff=0.6)
        section = field_words.SECTION_OF.get(leaf) or (near[0] if near else "")
        return f" (did you mean the section {section}?)" if section else ""
    if leaf in field_words.ELSEWHERE:
        return f" ({field_words.ELSEWHERE[leaf]})"
    if setting := _nearest(key.lower().replace("-", "_"), leaf):
        remark = field_words.REMARKS.get(leaf)
        return f" (did you mean {setting}?{f' {remark}' if remark else ''})"
    return ""


def _nearest(key: str, leaf: str) -> str | None:
    """The setting that a misspelt key means, by its name in its section, its name alone, or another tool's word."""
    names = [name for name, _ in leaves()]
    by_leaf: dict[str, str] = {}
    for name in names:  # of equal names in several sections, the first one's
        by_leaf.setdefault(name.rsplit(".", 1)[-1], name)
    if leaf in by_leaf or leaf in field_words.SETTING_OF:
        section = key.split(".")[0]
        own = f"{section}.{leaf}"
        return own if own in names else by_leaf.get(leaf) or field_words.SETTING_OF[leaf]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if close:
        return close[0]
    known = [*by_leaf, *field_words.SETTING_OF]
    near = difflib.get_close_matches(leaf, known, n=1, cutoff=0.7)
    return by_leaf.get(near[0]) or field_words.SETTING_OF[near[0]] if near else None


class _StrictLoader(yaml.SafeLoader):
    """YAML's own loader silently keeps the second of two equal keys, and reads a key `on` as True."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str) or keys.count(key) > 1:
                problem = "stands twice" if isinstance(key, str) else "is no text: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} {problem}", node.start_mark)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The same, but what only looks like a date or a number (2024-13-45) is an error of YAML's, with its place."""
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r:.80} cannot be read ({error}): put texts in quotes", node.start_mark
            ) from error


def read_yaml(file: Path) -> dict[str, Any]:
    """The content of a YAML file with settings, not validated yet.

    Raises:
        UserError: no such file, not UTF-8, not YAML, or not a mapping of names to values.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)
        flatten(tree if isinstance(tree, dict) else {})  # RecursionError: an anchor that contains itself
    except OSError as error:
        raise UserError(f"cannot read the config {file}: {error.strerror}{_others(file)}") from error
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


def _others(file: Path) -> str:
    """The configs that there are, the nearest first, where one is named that is not there."""
    if file.is_file():
        return ""
    folders = [folder for folder in (file.parent, paths.ROOT / "configs") if folder.is_dir()]
    configs = {path.resolve(): None for folder in folders for path in sorted(folder.glob("*.y*ml"))}
    here = Path.cwd()  # where the path on the command line starts
    names = [path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path) for path in configs]
    if not names:
        return ""
    near = difflib.get_close_matches(file.stem, [Path(name).stem for name in names], n=1, cutoff=0.5)
    guess = next((f" (did you mean {name}?)" for name in names if near and Path(name).stem == near[0]), "")
    return f"{guess}; there are {', '.join(names)}"


def load(file: Path | None, overrides: Mapping[str, str], base: Path | None = None) -> Settings:
    """Settings from a YAML file and command-line overrides.

    Args:
        file: a YAML file with what differs from the defaults, or None.
        overrides: dotted name → text, such as {"lora.r": "8"}; "null" clears an optional setting.
        base: the folder to which file paths among the overrides are relative; None: the repository's root,
            as in YAML files.

    Raises:
        UserError: an unknown, missing or ill-typed key; names the key, where it was given, and the nearest right key.
    """
    tree = read_yaml(file) if file else {}
    written = copy.deepcopy(tree)
    explicit = dict.fromkeys(map(_setting, flatten(tree)), f"in {file}") | dict.fromkeys(overrides, TYPED)
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
    if base is not None:
        _make_absolute(tree, overrides, base)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, file, overrides)) from error
    # only now: what is no setting can have any name
    config_file = ConfigFile(path=paths.label(file.resolve()), values=_values(written)) if file else None
    return settings.with_explicit(explicit, config_file)


def _values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name → value as it stands in the file; dates and the like, which JSON does not know, as text."""
    values: dict[str, Any] = {}
    for key in map(_setting, flatten(tree)):
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        values[key] = json.loads(json.dumps(value, default=str))
    return values


def _setting(key: str) -> str:
    """The setting of a flattened key: a setting that is a map was flattened, too."""
    names = {name for name, _ in leaves()}
    parts = key.split(".")
    return next((name for n in range(1, len(parts)) if (name := ".".join(parts[:n])) in names), key)


def _make_absolute(tree: dict[str, Any], overrides: Mapping[str, str], base: Path) -> None:
    """Let file paths among the overrides start at `base`, and no longer at the repository's root."""
    data = tree.get("data", {})
    in_data_set = isinstance(data, dict) and data.get("source", "files") != "files"  # names inside it, and no paths
    for key, text in overrides.items():
        is_path = key in FILE_KEYS or (key == "data.template" and text.endswith(".jinja"))
        if not is_path or text in ("", *NULLS) or (in_data_set and key.startswith("data.") and key != "data.template"):
            continue
        single = key == "data.template" or (base / text).exists()  # a file whose own name has a comma is one file
        names = [text] if single else text.split(",")
        section, leaf = key.split(".")
        tree[section][leaf] = ",".join(str(base / name) for name in names if name)


def _explain(error: ValidationError, file: Path | None, overrides: Mapping[str, str]) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = next((k for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in overrides), "")
    key = key or ".".join(part for part in location if not part.startswith("function-"))
    where = f"--{key}" if key in overrides or not file else f"{key} in {file}"
    if first["type"] == "extra_forbidden":
        return f"{where}: no such setting{suggest(key, first['input'])}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"{where}: {message[0].lower()}{message[1:]}{got}"
