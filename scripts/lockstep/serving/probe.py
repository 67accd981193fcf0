"""Questions of our own to a server that is closed to others: the gate's, and whether it is alive."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic, filenames
from lockstep.endpoint import protocol
from lockstep.endpoint.http_client import HttpClient, NoResponse
from lockstep.errors import UserError

# The gate asks many questions at a time, and on a slow CPU an answer waits for the others' to be computed.
ANSWER_SECONDS = 600.0


class Unanswered(UserError):
    """The server did not answer as it must."""


class Server:
    """How to speak to a server that is closed to others. Several threads may share one.

    Args:
        url: ends in /v1.
        secret: of this start.
    """

    def __init__(self, url: str, secret: str) -> None:
        self.url, self.secret = url, secret
        self._http = HttpClient(url, secret)

    def ask(self, path: str, body: dict[str, Any] | None = None, timeout: float = ANSWER_SECONDS) -> Any:
        """What the server answers to a POST, or to a GET where there is no body; text where it is no JSON.

        Raises:
            Unanswered: an error, or nothing within `timeout` seconds.
        """
        try:
            response = self._http.request(path, body, timeout)
        except NoResponse as error:
            raise Unanswered(str(error)) from error
        if response.status != 200:
            raise Unanswered(f"{path}: {response.status} {response.text[:300]}")
        try:
            return json.loads(response.text) if body is not None or response.text.startswith("{") else response.text
        except (ValueError, RecursionError) as error:
            raise Unanswered(f"{path}: what came is no JSON") from error

    def in_flight(self) -> int:
        """How many requests it has let in and not answered yet.

        Raises:
            Unanswered: who answers there is not the server of this start, which alone knows its secret.
        """
        answer = self.ask(protocol.IN_FLIGHT, timeout=5)
        if not isinstance(answer, dict) or not isinstance(answer.get("requests"), int):
            raise Unanswered(f"{self.url} is another server's")
        return int(answer["requests"])

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
    conversations = atomic.read_json(adapter / filenames.CONTRACT)["conversations"]
    prompts: list[list[int]] = [conversation["prompt_ids"] for conversation in conversations]
    return min(prompts, key=len)
