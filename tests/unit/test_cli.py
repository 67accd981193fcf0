"""What a script says and leaves behind, whatever its caller did to it; each in a process of its own."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PRINTS = """
import subprocess, sys
from lockstep import cli

def work():
    with open("kept", "w") as file:
        print("said")
        print("complained", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "print('said, too')"], check=True)
        file.write(sys.stdin.read() or "nothing to read")

cli.run(work)
"""


def run(folder: Path, program: str, streams: str = "") -> subprocess.CompletedProcess[str]:
    line = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} {streams}"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "LOCKSTEP_HOME": str(folder)}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )  # fmt: skip


@pytest.mark.parametrize("streams", ["", "<&-", "1>&-", "2>&-", "<&- 1>&- 2>&-"])
def test_what_is_printed_never_goes_into_a_file_because_a_stream_was_closed(tmp_path: Path, streams: str) -> None:
    answer = run(tmp_path, PRINTS, streams)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "kept").read_text() == "nothing to read"
    assert answer.stdout == ("" if "1>&-" in streams else "said\nsaid, too\n")
    assert answer.stderr == ("" if "2>&-" in streams else "complained\n")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        ("list((out / 'a file').iterdir())", "Not a directory: outputs/a file"),
        ("(out / 'a file' / 'b').mkdir()", "Not a directory: outputs/a file/b"),
        ("(out / 'a file').mkdir()", "File exists: outputs/a file"),
        ("out.write_text('')", "Is a directory: outputs"),
        ("(out / 'gone').read_text()", "No such file or directory: outputs/gone"),
        ("open('/dev/full', 'w', buffering=1).write('x\\n')", "No space left on device: while writing"),
    ],
)
def test_what_stands_in_the_way_is_one_line(tmp_path: Path, act: str, says: str) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/a file").touch()
    program = f"from lockstep import cli, paths; out = paths.OUTPUTS; cli.run(lambda: {act} and None)"
    answer = run(tmp_path, program)
    assert (answer.returncode, answer.stderr) == (2, f"error: {says}; nothing was published\n")
