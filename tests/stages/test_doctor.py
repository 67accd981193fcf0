"""The doctor as a program: what it prints, writes and answers, of a whole machine and of somebody's files."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.programs import ROOT, free_port, run

CODES = re.compile(r'Finding\(\s*"(\w+)"')
EXPECTED = {"code", "what", "next", "stops"}
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}


def report_of(file: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert report["ok"] is not any(finding["stops"] for finding in report["findings"])
    for finding in report["findings"]:
        assert set(finding) - {"file", "lines"} == EXPECTED
        assert finding["what"] and finding["next"] and "\n" not in finding["what"] + finding["next"]
    return report


def test_a_machine_that_is_well_is_a_table(tmp_path: Path) -> None:
    port = str(free_port())
    ended = run(tmp_path, "doctor.py", "--json", "doctor.json", "--serve.port", port, fresh=True, **NO_HUB)
    report = report_of(tmp_path / "doctor.json")
    # tests run in environments of all kinds; what is about the machine itself must be well
    mine = [finding["code"] for finding in report["findings"]]
    assert set(mine) <= {
        "hub_unreachable",
        "path_missing",
        "other_python",
        "package_version",
        "memory_little",
        "disk_little",
        "half_environment",
        "no_bfloat16",
        "shared_memory_left",  # of other programs that were killed
    }
    assert report["facts"][f"port {port}"] == "free"
    assert re.search(r"float32 within .*; NF4 within", report["facts"]["kernels"])
    assert ended.returncode == (0 if report["ok"] else 1) and ended.stderr == ""


def test_a_sick_machine_exits_with_one_and_names_each_cause_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train:\n  lr: 1\n")
    (tmp_path / "outputs/r/serve").mkdir(parents=True)
    (tmp_path / "outputs/r/serve/server.json").write_text('{"pid": 4194304}')
    program = f"ulimit -n 256; exec {sys.executable} {ROOT / 'scripts/doctor.py'} --config mine.yaml --json o.json"
    environment = os.environ | NO_HUB | {"LOCKSTEP_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(
        ["sh", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    codes = {finding["code"]: finding for finding in report_of(tmp_path / "o.json")["findings"]}
    assert ended.returncode == 1 and ended.stderr == ""
    assert codes["config_wrong"]["what"] == "train.lr in mine.yaml: no such setting (did you mean train.learning_rate?)"
    assert codes["file_limit"]["stops"] and not codes["dead_server"]["stops"]
    for code, finding in codes.items():
        kind = "error" if finding["stops"] else "note"
        assert f"{kind}: [{code}] {finding['what']}: {finding['next']}\n" in ended.stdout


def test_files_of_ones_own_are_checked_and_chinese_is_spoken(tmp_path: Path) -> None:
    (tmp_path / "serve.sh").write_text("vllm serve m --adapter a\n")
    (tmp_path / "sound.sh").write_text("vllm serve m\n")
    assert run(tmp_path, "doctor.py", "--check", "sound.sh").returncode == 0
    ended = run(tmp_path, "doctor.py", "--check", "serve.sh", "sound.sh", "--json", "o.json")
    (finding,) = report_of(tmp_path / "o.json")["findings"]
    assert ended.returncode == 1 and (finding["code"], finding["lines"]) == ("seed_fault_7", ["1"])
    assert finding["file"].endswith("serve.sh") and f"{finding['file']}:1: " in ended.stdout
    chinese = run(tmp_path, "doctor.py", "--check", "serve.sh", "--lang", "zh").stdout
    assert "vLLM 没有 --adapter 这个选项" in chinese
    missing = run(tmp_path, "doctor.py", "--check", "none.sh")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["python3.8", "python3.9", "python3.10"])
def test_a_python_that_is_too_old_is_told_by_the_doctor_itself(name: str, tmp_path: Path) -> None:
    places = [
        shutil.which(name),
        *map(str, Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}.*/bin/python")),
    ]
    python = next((place for place in places if place and old(place)), None)
    if not python:
        pytest.skip(f"{name} is not here")
    file = tmp_path / "doctor.json"
    ended = subprocess.run(
        [python, ROOT / "scripts/doctor.py", "--json", file], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and ended.stderr == ""
    assert [finding["code"] for finding in report_of(file)["findings"]] == ["python_version"]


def old(python: str) -> bool:
    """Whether it starts, and is as old as its name says."""
    ended = subprocess.run(
        [python, "-c", "import sys; sys.exit(sys.version_info >= (3, 11))"], capture_output=True, check=False
    )
    return ended.returncode == 0


def test_make_doctor_needs_no_environment(tmp_path: Path) -> None:
    for name in (
        "Makefile",
        "scripts",
        "configs",
        "requirements-cpu.txt",
        "requirements-cpu.lock",
        "requirements.lock",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "serve.sh").write_text("vllm serve m --adapter a\n")
    ended = subprocess.run(
        ["make", "doctor", "ACCEL=cpu", f"PYTHON={sys.executable}", "ARGS=--check serve.sh"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2 and "[seed_fault_7] " in ended.stdout  # make's own code for a recipe that failed


def test_the_page_lists_every_code_and_no_other() -> None:
    modules = [ROOT / "scripts/doctor.py", *(ROOT / "scripts/lockstep/doctor").glob("*.py")]
    used = {code for module in modules for code in CODES.findall(module.read_text(encoding="utf-8"))}
    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M))
    assert {code for code in listed if not code.startswith("seed_fault_")} - {"disk_read_only"} == used | {
        "python_version"
    }
    assert {f"seed_fault_{number}" for number in range(1, 11)} <= listed
