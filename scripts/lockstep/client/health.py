"""Whether an endpoint answers, and if not, what it is doing; for programs that watch one."""

import http.client
import json
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lockstep.endpoint import address, protocol, server_note

TIMEOUT = 5.0  # seconds

Kind = Literal["ready", "starting", "checked", "locked", "down"]


@dataclass(frozen=True)
class Health:
    """What was seen of an endpoint.

    Attributes:
        kind: ready · starting: its program runs, and does not listen yet · checked: the gate is shut ·
            locked: it wants another key · down.
        models: the names that it serves, where it is ready.
    """

    kind: Kind
    models: tuple[str, ...] = ()


def fetch(url: str, timeout: float = TIMEOUT) -> tuple[int, str]:
    """(HTTP status, body) of a GET with the endpoint's key; status 0 where nothing answers. Raises UserError: see the key."""
    key = protocol.key()
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    # Loopback is reached directly, whatever proxy the environment names.
    proxies = [urllib.request.ProxyHandler({})] if address.is_local(url) else []
    try:
        try:
            answer = urllib.request.build_opener(*proxies).open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, answer.read().decode("utf-8", errors="replace")
    except (OSError, ValueError, http.client.HTTPException):  # refused, silent, broken off, or no HTTP
        return 0, ""


def kind_of(status: int, body: str, starting: bool = False) -> Kind:
    """What an answer to `fetch` says about the endpoint."""
    if status == 200:
        return "ready"
    if status in (401, 403):
        return "locked"
    if status == 503 and protocol.reason_of(body) == protocol.BEING_CHECKED:
        return "checked"
    return "starting" if starting else "down"


def look(url: str, folder: Path | None = None) -> Health:
    """How an endpoint is now.

    Args:
        url: ends in /v1.
        folder: where the supervisor of this machine keeps its notes, if it is the one that serves there.
    """
    status, body = fetch(f"{url}/models")
    kind = kind_of(status, body, folder is not None and server_note.is_starting(folder))
    if kind != "ready":
        return Health(kind)
    try:
        return Health("ready", tuple(str(card["id"]) for card in json.loads(body)["data"]))
    except (ValueError, KeyError, TypeError, RecursionError):  # something else listens there
        return Health("down")


class Watch(threading.Thread):
    """Looks at endpoints again and again, for all who want to know.

    Attributes:
        seen: one for each endpoint; None before the first look.
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
