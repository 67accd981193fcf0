"""Waiting for a server that is on its way: it loads its model, or the gate still asks it."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lockstep.client.request_errors import NoAnswer
from lockstep.endpoint import server_note
from lockstep.settings import commands

SECONDS = 900.0  # as long as serve.startup_timeout gives a server by default
POLL = 1.0  # seconds between two tries

STARTING = "the server is still starting"
CHECKED = "the server is still being checked"


class ServerWait:
    """When a request that failed is worth waiting with, because the server is about to open. Threads may share one.

    Args:
        url: of the endpoint, ending in /v1.
        seconds: that are waited for at most, from the first request on that met a closed server; 0: none.
        folders: where the supervisors of this run keep their notes; none where the endpoint is somebody else's, of
            which is known only what it answers.
        notice: is told in one line that a server is waited for, and once more where it goes from loading to the gate.
    """

    def __init__(
        self,
        url: str,
        seconds: float = SECONDS,
        folders: Sequence[Path] = (),
        notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.url, self.seconds, self.folders, self.notice = url, seconds, folders, notice
        self._lock = threading.Lock()
        self._since: float | None = None
        self._told = ""
        self._answered = False

    def pause(self, error: NoAnswer) -> bool:
        """Pause, and say whether the same request is worth sending again; False: the error is of another kind.

        Raises:
            NoAnswer: the server did not open in time, or it is this run's own and nobody has started it.
        """
        if error.code == "no_server" and self._is_nobodys():
            raise error
        reason = self._reason(error)
        if not reason or not self.seconds:
            return False
        with self._lock:
            self._since = self._since or time.monotonic()
            if reason != self._told:
                self._told = reason
                self.notice(f"{reason} and opens when it has passed the gate: waiting up to {self.seconds:g} s")
            waited = time.monotonic() - self._since
        if waited >= self.seconds:
            message = f"{reason} after {self.seconds:g} s (--wait): see `{commands.make('status')}`"
            raise NoAnswer(message, "always", "not_ready") from error
        time.sleep(POLL)
        return True

    def answered(self) -> None:
        """An answer came: from now on a closed server is waited for anew."""
        self._since, self._told, self._answered = None, "", True

    def _reason(self, error: NoAnswer) -> str:
        """Why the server is not open yet; empty where it is not on its way."""
        if error.code == "being_checked":
            return CHECKED
        if error.code == "loading":
            return STARTING
        notes = [note for folder in self.folders if (note := server_note.current(folder))]
        starting = any(note.url == self.url and note.state == "starting" for note in notes)
        return STARTING if error.code == "no_server" and starting else ""

    def _is_nobodys(self) -> bool:
        """Whether it is this run's own server, which never answered, and no supervisor of the run serves there."""
        notes = map(server_note.current, self.folders)
        return bool(self.folders) and not self._answered and not any(note and note.url == self.url for note in notes)
