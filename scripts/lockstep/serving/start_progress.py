"""Where a server's start is: on the terminal, in server.json, and through it in `make status` and in answers by 503."""

import sys
import time
from collections.abc import Callable

from lockstep.text import language

NOTE_EVERY = 0.5  # seconds between two entries in server.json
LINE_EVERY = 60.0  # seconds between two lines of one step where there is no terminal
MARK = "  … "  # begins these lines, so that `Relayed` knows them
ERASED = "\r\x1b[K"  # a line of a terminal


class StartProgress:
    """Takes what is going on as often as it comes, and shows it as often as is useful.

    Args:
        note: keeps it in server.json.
        show: writes to the terminal as it is.
    """

    def __init__(self, note: Callable[[str], None], show: Callable[[str], None]) -> None:
        self._note, self._show, self.text = note, show, ""
        self._noted = self._shown = 0.0
        self._terminal = sys.stdout.isatty()
        self._step = ""

    def tell(self, step: str, detail: str) -> None:
        """Say which step is in progress, such as "proof 2 of 4 (stops)", and how far, such as "12 of 43 answered"."""
        self.text = f"{step}: {detail}"
        now = time.monotonic()
        is_new, self._step = step != self._step, step
        if is_new or now - self._noted >= NOTE_EVERY:
            self._noted = now
            self._note(self.text)
        shown = language.translated(self.text)
        if self._terminal:
            self._show(f"{ERASED}  {shown}")
        elif is_new or now - self._shown >= LINE_EVERY:
            self._shown = now
            self._show(f"{MARK}{shown}\n")

    def clear(self) -> None:
        """Make room on the terminal for a line."""
        self.text = self._step = ""
        if self._terminal:
            self._show(ERASED)


class Relayed:
    """Shows on this terminal what a server in the background prints: its progress in one line, the rest as it is.

    Args:
        progress: how far it is now, as server.json says it; empty where it says nothing.
        show: writes to the terminal as it is.
    """

    def __init__(self, progress: Callable[[], str], show: Callable[[str], None]) -> None:
        self._progress, self._show = progress, show
        self._terminal = sys.stdout.isatty()
        self._shown = ""

    def add(self, printed: str) -> None:
        """Show what it has printed since, and how far it is."""
        if not self._terminal:
            return self._show(printed)
        lines = [line for line in printed.splitlines(keepends=True) if not line.startswith(MARK)]
        now = language.translated(self._progress())
        if lines or now != self._shown:
            self._show((ERASED if self._shown else "") + "".join(lines) + (f"  {now}" if now else ""))
            self._shown = now

    def end(self, printed: str) -> None:
        """Show the last that it printed, and no progress."""
        self._progress = str
        self.add(printed)
