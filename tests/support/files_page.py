"""docs/files.md as a program reads it: which files there are, and which keys each JSON file has."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.programs import ROOT

PAGE = ROOT / "docs/files.md"
ROW = re.compile(r"^\| `([^`]+)` \|", flags=re.M)


@dataclass
class Key:
    """What the page says about the value of one key.

    Attributes:
        optional: it may be absent.
        children: its own keys; `<…>` stands for any, `[]` for the elements of a list.
        untold: `*`: it may hold more than is told.
        seen: a value of it was met.
    """

    optional: bool = False
    children: dict[str, "Key"] = field(default_factory=dict)
    untold: bool = False
    seen: bool = False

    def add(self, path: str) -> None:
        """A row of a table, such as `files.<file>.lines` or `rows[].base[]`."""
        key = self
        for part in path.replace("[]", ".[]").split("."):
            name = part.removesuffix("?")
            if name == "*":
                key.untold = True
            else:
                key = key.children.setdefault(name, Key())
                key.optional |= part.endswith("?")

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Where a value differs from what the page says of it."""
        self.seen = True
        if isinstance(value, dict):
            yield from self._faults_of_object(value, where)
        elif isinstance(value, list) and "[]" in self.children:
            for element in value:
                yield from self.children["[]"].faults(element, f"{where}[]")
        elif isinstance(value, list) and not self.untold and any(isinstance(element, dict | list) for element in value):
            yield f"{where}: the page does not tell what its elements hold"

    def _faults_of_object(self, value: dict[str, Any], where: str) -> Iterator[str]:
        any_name = next((key for name, key in self.children.items() if name.startswith("<")), None)
        for name, inner in value.items():
            if key := self.children.get(name, any_name):
                yield from key.faults(inner, f"{where}.{name}")
            elif not self.untold:
                yield f"{where}.{name} is not on the page"
        for name, key in self.children.items():
            if not (key.optional or name in value or name.startswith("<")):
                yield f"{where}.{name} is on the page only"

    def unseen(self, where: str) -> Iterator[str]:
        """Keys that the page promises and no value had."""
        for name, key in self.children.items():
            if key.optional or (name == "[]" and not key.children):  # a list of plain values may be empty
                continue
            if not key.seen:
                yield f"{where}.{name}"
            else:
                yield from key.unseen(f"{where}.{name}")


def files(page: Path = PAGE) -> list[str]:
    """The patterns of files; those that may be absent end in `?`."""
    return ROW.findall(page.read_text(encoding="utf-8").split("\n## ")[1])


def matches(pattern: str, file: str) -> bool:
    """Whether a file, relative to the home, is one that a pattern names."""
    parts = re.split(r"(<[^>]+>|\*)", pattern.removesuffix("?"))
    words = ["[^/]*" if part == "*" else "[^/]+" if part.startswith("<") else re.escape(part) for part in parts]
    return bool(re.fullmatch("".join(words), file))


def keys(name: str, page: Path = PAGE) -> Key:
    """What the page says about the JSON file under a heading."""
    _, found, rest = page.read_text(encoding="utf-8").partition(f"\n### `{name}`\n")
    assert found, f"{page.name} has no section {name}"
    root = Key()
    for path in ROW.findall(re.split(r"\n##", rest)[0]):
        root.add(path)
    return root


def documents(file: Path) -> list[Any]:
    """The JSON values that a file holds: one, or one a line."""
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else [json.loads(text)]


def faults(name: str, *values: Any) -> list[str]:
    """Where values differ from the page's section of a name, and what it promises that none of them has."""
    key = keys(name)
    differences = [fault for value in values for fault in key.faults(value, name)]
    return differences + [f"{path} is on the page, and no value has it" for path in key.unseen(name)]
