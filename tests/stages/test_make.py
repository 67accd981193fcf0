"""What `make setup` does where .venv is in use: nothing, and says so."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", *words, f"PYTHON={sys.executable}", "ACCEL=cpu"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)


def test_packages_that_a_program_uses_are_not_cleared(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in ROOT.glob("requirements*"):
        shutil.copy(file, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/kept").touch()
    holder = os.open(tmp_path / ".venv", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)  # as cli.run does
    answer = make(tmp_path, "setup")
    os.close(holder)
    assert answer.returncode == 2 and "error: .venv must be made anew, and programs run from it" in answer.stderr
    assert [file.name for file in (tmp_path / ".venv").iterdir()] == ["kept"]
