"""Questions of our own to a server that is closed to others: the gate's, and whether it is alive."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic, filenames
from lockstep.endpoint import protocol
from lockstep.errors import UserError


class Unanswered(UserError):
    """The server did not answer as it must."""


@dataclass(frozen=True)
class Server:
    """How to speak to a server that is closed to others.

    Args:
        url: ends in /v1.
        secret: of this start.
    """

    url: str
    secret: str

    def ask(self, path: str, body: dict[str, Any] | None = None, timeout: float = 120) -> Any:
        """What the server answers to a POST, or to a GET where there is no body; text where it is no JSON.

        Raises:
            Unanswered: an error, or nothing within `timeout` seconds.
        """
        headers = {protocol.HEADER.decode(): self.secret, "Content-Type": "application/json"}
        if key := protocol.key():
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.removesuffix("/v1") + path, data, headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback goes through no proxy
        try:
            with direct.open(request, timeout=timeout) as answer:
                text = answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            raise Unanswered(f"{path}: {error.code} {error.read(300).decode(errors='replace')}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{path}: no answer ({error})") from error
        try:
            return json.loads(text) if body is not None or text.startswith("{") else text
        except (ValueError, RecursionError) as error:
            raise Unanswered(f"{path}: what came is no JSON") from error

    def in_flight(self) -> int:
        """How many requests it has let in and not answered yet.

        Raises:
            Unanswered: who answers there is not the server of this start, which alone knows its secret.
        """
        found = self.ask(protocol.IN_FLIGHT, timeout=5)
        if not isinstance(found, dict) or not isinstance(found.get("requests"), int):
            raise Unanswered(f"{self.url} is another server's")
        return int(found["requests"])

    def complete(self, model: str, prompt: Sequence[int], **settings: Any) -> Any:
        """One greedy completion of token ids: a choice of vLLM's answer."""
        body = {"model": model, "prompt": list(prompt), "temperature": 0, **settings}
        return self.ask("/v1/completions", body)["choices"][0]


def canary(server: Server, model: str, prompt: Sequence[int], timeout: float) -> None:
    """One token: a server that gives it is alive. Raises Unanswered."""
    body = {"model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0}
    server.ask("/v1/completions", body, timeout)


def canary_prompt(adapter: Path) -> list[int]:
    """The shortest golden prompt."""
    agreed = atomic.read_json(adapter / filenames.CONTRACT)
    shortest: list[int] = min((one["prompt_ids"] for one in agreed["conversations"]), key=len)
    return shortest
