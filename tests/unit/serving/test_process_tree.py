"""Ending processes that started processes."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from support.programs import ROOT

from lockstep.serving import process_tree

SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
# A child that starts a deaf grandchild in a session of its own; then both are ended, and who is left is counted.
FAMILY = f"""
import subprocess, sys, time
import psutil
from lockstep.processes import child_processes
from lockstep.serving import process_tree
child_processes.become_subreaper()
start = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", start, {DEAF!r}], stdout=subprocess.PIPE)
child.stdout.readline()
members = psutil.Process().children(recursive=True)
process_tree.end_all(grace=0.5)
print(len(members), len(psutil.Process().children(recursive=True)), sum(member.is_running() for member in members))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's subreaper")
def test_who_does_not_hear_is_killed_and_nobody_is_left() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    answer = subprocess.run(
        [sys.executable, "-c", FAMILY], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.stdout == "2 0 0\n", answer.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_processes_with_the_mark_are_killed() -> None:
    def start(value: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", SLEEP], env=os.environ | {"LOCKSTEP_TEST_MARK": value})

    own = f"ours {os.getpid()}"
    marked, other = [start(own), start(own)], start("theirs")
    time.sleep(0.5)
    try:
        assert process_tree.kill_marked("LOCKSTEP_TEST_MARK", own) == 2
        assert not any(psutil.pid_exists(process.pid) for process in marked) and other.poll() is None
        assert process_tree.kill_marked("LOCKSTEP_TEST_MARK", own) == 0
    finally:
        process_tree.kill(psutil.Process(other.pid))
        other.wait(timeout=5)
