"""What a script says and leaves behind, whatever its caller did to it; each in a process of its own."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT

PRINTS = """
import subprocess, sys
from lockstep.settings import cli

def work():
    with open("kept", "w") as file:
        print("said")
        print("complained", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "print('said, too')"], check=True)
        file.write(sys.stdin.read() or "nothing to read")

cli.run(work)
"""


def run(folder: Path, program: str, streams: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    line = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} {streams}"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "LOCKSTEP_HOME": str(folder)} | extra
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
        ("(_ for _ in ()).throw(OSError(107, os.strerror(107)))", "Transport endpoint is not connected"),
        ("(_ for _ in ()).throw(OSError(['several', 'at once']))", "['several', 'at once']"),
        ("os.stat(99)", "Bad file descriptor"),
        ("open('/dev/full', 'w', buffering=1).write('x\\n')", "No space left on device"),
        (
            "tokenizers.Tokenizer(tokenizers.models.BPE()).save('/dev/full')",
            "the disk is full, or a file may not grow so large",
        ),
    ],
)
def test_what_stands_in_the_way_is_one_line(tmp_path: Path, act: str, says: str) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/a file").touch()
    program = f"import os, tokenizers; from lockstep import paths; from lockstep.settings import cli; out = paths.OUTPUTS; cli.run(lambda: {act} and None)"
    answer = run(tmp_path, program)
    assert (answer.returncode, answer.stderr) == (2, f"error: {says}; nothing was published\n")


def test_a_running_stage_holds_its_packages(tmp_path: Path) -> None:
    try_it = "fcntl.flock(os.open(sys.prefix, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    answer = run(tmp_path, f"import fcntl, os, sys; from lockstep.settings import cli; cli.run(lambda: {try_it})")
    assert (answer.returncode, answer.stderr) == (2, "error: Resource temporarily unavailable; nothing was published\n")


def test_what_no_launcher_wrote_into_the_environment_is_not_taken_for_its_word(tmp_path: Path) -> None:
    for given in ({"RANK": "abc"}, {"RANK": "1"}, {"WORLD_SIZE": "x", "LOCAL_RANK": "-3"}):
        answer = run(
            tmp_path,
            "from lockstep.settings import cli; from lockstep.processes import distributed; cli.run(lambda: print(distributed.RANK, distributed.LOCAL_RANK))",
            **given,
        )
        assert (answer.returncode, answer.stdout) == (0, "0 0\n")


def test_half_a_launch_is_no_launch_and_training_refuses_it(tmp_path: Path) -> None:
    whole = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    program = "from lockstep.settings import cli; from lockstep.processes import distributed; cli.run(lambda: print(distributed.PROCESSES, distributed.RANK) or distributed.check())"
    answer = run(tmp_path, program, **whole)
    assert (answer.returncode, answer.stdout) == (0, "2 1\n")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        answer = run(tmp_path, program, **{key: value for key, value in whole.items() if key != name})
        assert (answer.returncode, answer.stdout) == (2, "1 0\n")
        assert (
            answer.stderr.startswith(f"error: WORLD_SIZE is 2, and {name} is not set")
            and answer.stderr.count("\n") == 1
        )


def test_a_file_in_the_repositorys_outputs_is_not_taken_for_one_of_another_home(tmp_path: Path) -> None:
    for name in ("outputs/demo/mine.jsonl", "models/m/config.json", "data/hub/x", "data/mine.jsonl"):
        program = f"from lockstep import paths; file = paths.data_file({name!r}); print(paths.resolve_label(paths.label(file)) == file)"
        assert run(tmp_path, program).stdout == "True\n"
        assert run(ROOT, program).stdout == "True\n"
        own = f"from lockstep import paths; file = paths.HOME / {name!r}; print(paths.resolve_label(paths.label(file)) == file)"
        assert run(tmp_path, own).stdout == "True\n"
