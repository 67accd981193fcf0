"""Where a server's start is: on the terminal, in server.json, and through it in `make status` and in answers by 503."""

import sys
import time
from collections.abc import Callable

from lockstep.text import language

NOTE_EVERY = 0.5  # seconds between two entries in server.json
LINE_EVERY = 15.0  # seconds between two lines where there is no terminal


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
            self._show(f"\r\x1b[K  {shown}")
        elif is_new or now - self._shown >= LINE_EVERY:
            self._shown = now
            self._show(f"  {shown}\n")

    def clear(self) -> None:
        """Make room on the terminal for a line."""
        self.text = self._step = ""
        if self._terminal:
            self._show("\r\x1b[K")
