"""What takes long is shown: a bar on a terminal, few lines elsewhere, and nothing of what is over at once."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import time

import pytest
from support.programs import ROOT

from lockstep.processes import busy

WORK = """
import time
from lockstep.processes import busy
busy.SHOWN_AFTER, busy.TICK, busy.LINE_AFTER, busy.LINE_EVERY = 0.1, 0.05, 0.1, 0.5
with busy.waiting("loading the base"):
    time.sleep(0.4)
for _ in busy.steps(range(40), "measuring", unit="batches"):
    time.sleep(0.02)
print("done")
"""


def run(stderr: int) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.run(
        [sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=stderr, env=environment, check=True
    )


def test_a_terminal_shows_seconds_and_a_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    assert run(theirs).stdout == b"done\n"
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # of which the last read tells the end
        while piece := os.read(ours, 65536):
            shown += piece.decode()
    assert "loading the base … " in shown and "measuring: " in shown and "/40 [" in shown


def test_a_log_gets_few_whole_lines() -> None:
    ended = run(subprocess.PIPE)
    lines = ended.stderr if ended.stderr else b""
    assert lines.decode().splitlines()[0] == "loading the base …"
    assert 2 <= len(lines.splitlines()) <= 4 and b"\r" not in lines and b" of 40 batches after " in lines


def test_what_is_over_at_once_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with busy.waiting("nothing"):
        pass
    assert list(busy.steps(iter([1, 2]), "nothing", total=2)) == [1, 2]
    started = time.monotonic()
    with pytest.raises(KeyError), busy.waiting("nothing"):
        raise KeyError
    assert time.monotonic() - started < 1
    assert capsys.readouterr().err == ""


def test_what_is_waited_for_is_said_in_the_readers_language(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(busy, "LINE_AFTER", 0.0)
    monkeypatch.setenv("LANGUAGE", "zh")
    with busy.waiting("loading the tokenizer"):
        time.sleep(0.05)
    assert capsys.readouterr().err == "正在加载分词器 …\n"
