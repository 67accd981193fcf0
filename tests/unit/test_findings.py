"""findings/: each script has the form that findings/README.md states. They install packages, so none of them runs here."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.programs import ROOT

SCRIPTS = sorted((ROOT / "findings").glob("*.sh"))
FIELDS = ("Library", "Expected", "Happens", "Output seen")
OPTIONS_WITH_A_VALUE = {"--index-url"}
# Packages that a script installs: the arguments of its function `packages`, up to what the shell reads next.
INSTALLS = re.compile(r"^ *packages (?!\(\))((?:[^\n|&;>\\]|\\\n)+)", re.MULTILINE)


def head_of(script: Path) -> dict[str, str]:
    """Field → text of the comments at the top."""
    comments = script.read_text(encoding="utf-8").split("\nset -euo pipefail\n")[0].splitlines()[1:]
    assert all(line.startswith("# ") for line in comments), f"{script.name}: the head is comments only"
    fields: dict[str, str] = {}
    for line in comments:
        if start := re.match(r"# ([A-Z][a-z ]+): ?(.*)", line):
            name, text = start.groups()
            fields[name] = text
        else:
            fields[name] += "\n" + line[2:].strip()
    return fields


def installed(script: Path) -> list[str]:
    """Every package that it asks pip for."""
    requirements = []
    for arguments in INSTALLS.findall(script.read_text(encoding="utf-8")):
        words = iter(arguments.split())
        for word in words:
            if word in OPTIONS_WITH_A_VALUE:
                next(words)
            elif not word.startswith("-") and not word.isdigit():  # a digit: the file of a redirection
                requirements.append(word)
    return requirements


def test_there_are_findings_and_nothing_else() -> None:
    assert len(SCRIPTS) > 3
    assert {file.name for file in (ROOT / "findings").iterdir()} == {script.name for script in SCRIPTS} | {"README.md"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
class TestForm:
    def test_it_is_an_executable_that_bash_can_read(self, script: Path) -> None:
        assert os.access(script, os.X_OK)
        assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
        subprocess.run(["bash", "-n", script], check=True, timeout=10)

    def test_the_head_has_every_field(self, script: Path) -> None:
        head = head_of(script)
        assert all(len(head.get(field, "")) > 10 for field in FIELDS), f"a field of {FIELDS} is missing or empty"
        assert set(head) <= {*FIELDS, "Needs"}
        assert ("exit 77" in script.read_text(encoding="utf-8")) == ("Needs" in head)

    def test_every_package_is_pinned_and_named_in_the_head(self, script: Path) -> None:
        packages = installed(script)
        assert packages
        for package in packages:
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.+]*", package), f"{package} is not pinned"
        versions = dict(package.split("==") for package in packages)
        library = max((name for name in versions if script.stem.startswith(f"{name}-")), key=len, default="")
        assert library, "the script's name begins with the library's"
        assert f"{library} {versions[library]}" in head_of(script)["Library"]

    def test_versions_are_those_of_the_locks(self, script: Path) -> None:
        locked: dict[str, set[str]] = {}  # clients that are tried against the endpoint stand in a lock of their own
        for kind in ("dev", "cpu", "clients"):
            for line in (ROOT / f"requirements-{kind}.lock").read_text(encoding="utf-8").splitlines():
                if "==" in line:
                    name, version = line.split(" ;")[0].split("==")
                    locked.setdefault(name, set()).add(version)
        for package in installed(script):
            name, version = package.split("==")
            assert version in locked.get(name, {version})

    def test_it_stands_alone_and_leaves_nothing_behind(self, script: Path) -> None:
        text = script.read_text(encoding="utf-8")
        assert "lockstep" not in text.lower() and "scripts/" not in text
        assert "work=$(mktemp -d)\ntrap 'rm -rf \"$work\"' EXIT\n" in text
        assert " -I " in text  # Python sees its own environment's packages only

    def test_it_says_whether_the_library_has_changed(self, script: Path) -> None:
        text = script.read_text(encoding="utf-8")
        assert re.search(r'sys\.exit\(f?"changed: ', text)
        assert re.search(r'print\(f?"as seen: ', text)
