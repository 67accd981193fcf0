"""Names and paths made to harm: nothing is written outside of the root, and no command of theirs runs."""

import errno
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run
from support.programs import ROOT

from lockstep import paths
from lockstep.data import sources
from lockstep.errors import UserError
from lockstep.settings import cli

pytestmark = pytest.mark.promise("No name or path leads out of the root or runs a command")

HOSTILE = [
    "..", ".", "../x", "../../x", "a/../../x", "/etc/x", "/", "//x", "~", "~root/x", "a/b", "a\\b", "..\\x", "C:\\x", "C:x", "",
    " ", "a b", " a", "a ", "a\n", "a\nb", "\nb", "a\tb", "a\0b", "a\rb", "-rf", "--force", "-", "_a", ".hidden", "a" * 97, "a" * 300,
    "$(touch canary)", "`touch canary`", "a;touch canary", "a|touch canary", "a&&touch canary", "a>canary", "${HOME}", "'", '"', "a'b", 'a"b',
    "a*", "a?", "{a,b}", "%n", "%s%s", "ａｂｃ", "а", "ａ．．", "\u202ea", "a\u200b", "\ud800", "é", "e\u0301", "a\x1b[2J", "файл", "<script>", "a#b", "a:b",
]  # fmt: skip
# Sound on this side of the rule, and no folder of ours either.
HARMLESS = ["a", "A", "a..", "a.b-c_d", "con", "NUL.txt", "manifest.json", "a" * 96, "0"]


def settings_of(*words: str):
    made = cli.parser("test", "model")
    cli.stage_options(made)
    return cli.settings_from(made.parse_args(list(words)))


@pytest.mark.parametrize("key", ["run", "model.name"])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_such_folder(key: str, name: str) -> None:
    with pytest.raises(UserError) as refused:
        settings_of(f"--{key}={name}")
    assert f"--{key}" in str(refused.value)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_sound_name_is_a_folder_of_its_own(name: str) -> None:
    found = settings_of(f"--run={name}", f"--model.name={name}")
    assert found.run_dir.parent == paths.OUTPUTS and found.model.folder.parent == paths.MODELS


@pytest.mark.parametrize("name", HOSTILE)
def test_an_id_names_a_folder_under_models_or_none(name: str) -> None:
    for source, key in (("hub", "id"), ("pypi", "id"), ("local", "path")):
        try:
            folder = settings_of(f"--model.source={source}", f"--model.{key}={name}").model.folder
        except UserError:
            continue
        except OSError as error:  # cli.run makes one line of this
            assert error.errno == errno.ENAMETOOLONG
            continue
        assert folder.parent == paths.MODELS and paths.NAME.fullmatch(folder.name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_data_sets_id_names_a_folder_under_data_or_none(name: str) -> None:
    for id in (name, f"org/{name}", f"{name}/x"):
        try:
            folder = sources._dataset_folder("hub", id)
        except UserError:
            continue
        assert folder.parent == paths.DATASETS and paths.NAME.fullmatch(folder.name)


@pytest.mark.faults
@pytest.mark.parametrize(
    "script", ["00_download_model.py", "01_data_collator.py", "02_train_qlora.py", "03_merge_lora.py", "05_evaluate.py"]
)
def test_the_scripts_themselves(
    stage: Run, tmp_path: Path, script: str, record_property: Callable[[str, object], None]
) -> None:
    """As programs; what the system itself takes from no command line (NUL, half characters) is left out."""
    passed = [name for name in HOSTILE if "\0" not in name and name != "\ud800"][::4]
    record_property("cases", len(passed))
    for name in passed:
        answer = stage(script, f"--run={name}", f"--model.name={name}")
        assert answer.returncode == 2 and "Traceback" not in answer.stderr, (name, answer.stderr)
        assert answer.stderr.count("error:") == 1
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("key", ["model.path", "data.train_file", "config", "lora.start_from"])
def test_a_path_of_300_characters_is_one_line(stage: Run, key: str) -> None:
    script = {"model.path": "00_download_model.py", "lora.start_from": "02_train_qlora.py"}.get(
        key, "01_data_collator.py"
    )
    answer = stage(script, "--model.source=local", f"--{key}=" + "a" * 300)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr, answer.stderr
    assert answer.stderr.count("error:") == 1


# --- through the Makefile ---

STUB = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["STUB_LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
raise SystemExit(3 if "--check" in sys.argv and "00_download" in sys.argv[1] else 0)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The Makefile with a Python that writes down what it is called with."""
    folder = tmp_path / "copy"
    (folder / ".venv/bin").mkdir(parents=True)
    for file in [ROOT / "Makefile", *ROOT.glob("requirements*")]:
        shutil.copyfile(file, folder / file.name)
    python = folder / ".venv/bin/python"
    python.write_text(STUB)
    python.chmod(0o755)
    (folder / ".venv/cpu.stamp").touch()
    return folder


def make(folder: Path, goal: str, arguments: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """(make's answer, the words of every call of Python)."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    answer = subprocess.run(
        ["make", "--no-print-directory", goal, "ACCEL=cpu", "PYTHON=false", "CONFIG=", f"ARGS={arguments}"],
        cwd=folder, env=os.environ | {"STUB_LOG": str(log)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return answer, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


MADE = [name for name in HOSTILE if "\0" not in name and name not in ("", "\ud800") and "\n" not in name]


@pytest.mark.parametrize("names", [MADE[::6], pytest.param(MADE, marks=pytest.mark.faults)], ids=["some", "all"])
def test_a_quoted_name_comes_to_every_stage_as_it_is(
    copy: Path, names: list[str], record_property: Callable[[str, object], None]
) -> None:
    record_property("cases", len(names))
    for name in names:
        quoted = shlex.quote(name).replace("$", "$$")  # a dollar is make's own sign
        answer, calls = make(copy, "data", f"--run {quoted} --model.name={quoted} --data.max_length 9")
        assert answer.returncode == 0, (name, answer.stderr)
        scripts = [call[0] for call in calls]
        assert scripts.count("scripts/00_download_model.py") == 2 and scripts.count("scripts/01_data_collator.py") == 2
        for call in calls:
            assert call[call.index("--run") + 1] == name and f"--model.name={name}" in call
        assert not (copy / "canary").exists()


def test_arguments_of_two_lines_are_refused(copy: Path) -> None:
    answer, calls = make(copy, "data", "--run 'a\ntouch canary\n'")
    assert answer.returncode == 2 and "must each be one line" in answer.stderr
    assert not calls and not (copy / "canary").exists()
