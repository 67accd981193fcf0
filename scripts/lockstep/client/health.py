"""Whether an endpoint is ready and, if not, what it is doing; for programs that watch it."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lockstep.endpoint import protocol, server_note
from lockstep.endpoint.http_client import HttpClient, NoResponse, Response

Kind = Literal["ready", "starting", "checked", "locked", "down"]


@dataclass(frozen=True)
class Health:
    """The state of an endpoint.

    Attributes:
        kind: ready · starting: its supervisor runs, and vLLM does not listen yet · checked: the gate has not
            opened · locked: it needs another key · down.
        models: the names that it serves, where it is ready.
    """

    kind: Kind
    models: tuple[str, ...] = ()


def kind_of(url: str, path: str, folder: Path | None = None) -> tuple[Kind, str]:
    """What an endpoint is doing, as one of its paths tells, and the body where it is ready.

    Args:
        url: ends in /v1.
        folder: where the supervisor of this machine keeps its note, if it is the one that serves there.

    Raises:
        UserError: the environment's key is none that a header can carry.
    """
    try:
        response = HttpClient(url).request(path)
    except NoResponse:
        response = Response(0, "")
    if response.status == 200:
        return "ready", response.text
    if response.status in (401, 403):
        return "locked", ""
    if response.status == 503 and protocol.reason_of(response.text) == protocol.BEING_CHECKED:
        return "checked", ""
    if response.status == 503 and protocol.reason_of(response.text) == protocol.LOADING:
        return "starting", ""
    return ("starting" if folder and server_note.is_starting(folder) else "down"), ""


def look(url: str, folder: Path | None = None) -> Health:
    """How an endpoint is now; arguments and errors as of `kind_of`."""
    kind, body = kind_of(url, "/v1/models", folder)
    if kind != "ready":
        return Health(kind)
    try:
        return Health("ready", tuple(str(card["id"]) for card in json.loads(body)["data"]))
    except (ValueError, KeyError, TypeError, RecursionError):  # something else listens there
        return Health("down")


class Watch(threading.Thread):
    """A thread that looks at endpoints again and again, for all parts of a program.

    Attributes:
        seen: the state of each endpoint; None before the first look.
    """

    def __init__(self, places: list[tuple[str, Path | None]], seconds: float) -> None:
        super().__init__(daemon=True)
        self.places, self.seconds = places, seconds
        self.seen: list[Health | None] = [None] * len(places)
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            for number, (url, folder) in enumerate(self.places):
                self.seen[number] = look(url, folder)
            self._ended.wait(self.seconds)

    def end(self) -> None:
        self._ended.set()
