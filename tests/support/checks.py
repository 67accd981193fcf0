"""What many tests check or wait for."""

import time
from collections.abc import Callable
from typing import Any

from support.programs import Ended


def one_line(ended: Ended) -> str:
    """The one line that says what the user can put right, of a program that ended with exit code 2."""
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert ended.returncode == 2, ended.stderr
    assert len(lines) == 1 and "Traceback" not in ended.stderr, ended.stderr
    return lines[0]


def wait_for(holds: Callable[[], Any], seconds: float = 30) -> None:
    """Until something holds; fails where it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"it did not happen within {seconds:g} s"
        time.sleep(0.02)
