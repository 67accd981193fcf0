"""How programs start: with a Python that lacks the packages, and with Ctrl-C while they import."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.programs import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
DOCTOR = ROOT / "scripts/doctor.py"  # which looks further: people start it where an environment is broken


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A Python without site-packages."""
    program = tmp_path / "python3"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    return program


def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=os.environ | more, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path != DOCTOR], ids=lambda path: path.name)
def test_a_python_without_the_packages_is_one_line(script: Path, bare_python: Path) -> None:
    answer = run(bare_python, script)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.fullmatch(r"error: \S+ lacks the package \w+: run `make setup`, .*\n", answer.stderr)


def test_the_doctor_says_the_same_among_what_it_can_see_without_them(bare_python: Path, tmp_path: Path) -> None:
    home = {"LOCKSTEP_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    answer = run(bare_python, DOCTOR, "--config", "any.yaml", "--train.seed", "3", **home)
    assert (answer.returncode, answer.stderr) == (1, "")
    assert re.search(r"^error: \[package_missing\] \S+ has none of the packages: ", answer.stdout, flags=re.M)
    assert re.search(r"^port 8000 ", answer.stdout, flags=re.M) and "kernels" not in answer.stdout


def test_the_server_says_the_same(bare_python: Path) -> None:
    answer = run(ROOT / "scripts/serve_vllm.sh", "--status", PYTHON=str(bare_python))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.fullmatch(r"error: \S+ lacks the package \w+: run `make setup`, .*\n", answer.stderr)


def test_a_package_that_is_missing_later_is_one_line_too_and_a_debugger_gets_the_traceback(tmp_path: Path) -> None:
    program = "import lockstep.settings.cli as cli; cli.run(lambda: __import__('no_such.module'))"
    answer = run(sys.executable, "-c", program, PYTHONPATH=str(ROOT / "scripts"))
    assert answer.returncode == 2
    assert re.fullmatch(r"error: \S+ lacks the package no_such: run `make setup`, .*\n", answer.stderr)
    answer = run(sys.executable, "-c", program, PYTHONPATH=str(ROOT / "scripts"), LOCKSTEP_DEBUG="1")
    assert answer.returncode == 1 and "Traceback" in answer.stderr


def test_the_toy_data_needs_no_packages(bare_python: Path) -> None:
    assert run(bare_python, ROOT / "data/build_toy_dataset.py", "--help").returncode == 0


def interrupt_after(module: str, *command: str | Path) -> tuple[int, list[str]]:
    """The exit code, and what a program wrote on stderr, that got SIGINT when it had imported a module."""
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", *command], env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        lines, sent = [], False
        for line in process.stderr:
            if not line.startswith("import time:"):
                lines.append(line)
            elif not sent and line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
                sent = True
    assert sent, f"{module} was not imported"
    return process.returncode, lines


@pytest.mark.parametrize(
    "module", ["lockstep.errors", "argparse", "pydantic", "yaml", "pydantic_core", "annotated_types"]
)
def test_ctrl_c_while_a_script_imports_leaves_no_traceback(module: str) -> None:
    code, lines = interrupt_after(module, ROOT / "scripts/02_train_qlora.py", "--help")
    assert (code, lines) == (-signal.SIGINT, [])  # ended by the signal, as shells expect it


LAZY = "import lockstep.settings.cli as cli; cli.run(lambda: __import__('lockstep.training.setup'))"


@pytest.mark.parametrize("module", ["torch._utils", "tokenizers.tokenizers", "safetensors"])
def test_ctrl_c_while_a_stage_imports_libraries_is_one_line(module: str) -> None:
    code, lines = interrupt_after(module, "-c", LAZY)
    assert (code, lines) == (130, ["error: interrupted; run the same command again\n"])


CHILD = """
import sys, time
from pathlib import Path
from lockstep.processes import child_processes
from lockstep.settings import cli

def work(sender, note):
    import tokenizers
    sender.send("ready")
    time.sleep(60)

def main():
    with child_processes.fresh(work, "") as (child, receiver):
        print("started", flush=True)
        receiver.recv()
        print("ready", flush=True)
        time.sleep(60)

if __name__ == "__main__":
    cli.run(main)
"""


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 60.0])
def test_ctrl_c_goes_to_all_processes_of_a_terminal_and_one_of_them_answers(tmp_path: Path, delay: float) -> None:
    (tmp_path / "program.py").write_text(CHILD)
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        if delay == 60:
            assert process.stdout.readline() == "ready\n"
        else:
            time.sleep(delay)  # while the child imports
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "error: interrupted; run the same command again\n"
