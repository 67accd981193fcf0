"""A conversation with one model, or with two side by side: what was asked, and how each answer went.

Each answer is made in a thread of its own, so that two come at the same time, and a page that
shows them can be redrawn, or stop them, whatever the server does.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from lockstep.client.conversation import Conversation
from lockstep.client.openai_client import Endpoint, request
from lockstep.client.request_errors import NoAnswer
from lockstep.errors import UserError
from lockstep.settings.schema import Sampling

# Of an answer: `length` was cut off by max_tokens, `broken` ended in the middle, `failed` never began.
State = Literal["running", "whole", "length", "stopped", "broken", "failed"]
WHOLE = ("whole", "length")


@dataclass(frozen=True)
class Voice:
    """A model at an endpoint, and what to call it."""

    endpoint: Endpoint
    model: str
    label: str


class _Stopped(Exception):
    """The reader has seen enough."""


@dataclass
class Reply:
    """One model's answer, as far as it has come.

    Attributes:
        tokens: counted by the server; while the answer is made, and where it broke off, the pieces that came.
        first: seconds until the first of them.
        error: why there is no answer, or only a part of one.
    """

    label: str
    text: str = ""
    state: State = "running"
    error: UserError | None = None
    tokens: int = 0
    prompt_tokens: int | None = None
    seconds: float = 0.0
    first: float | None = None
    stopped: bool = False
    started: float = field(default_factory=time.monotonic)

    def make(self, voice: Voice, body: dict[str, Any]) -> None:
        """Have the answer made."""
        try:
            found = voice.endpoint.ask(body, show=self._grow)
        except _Stopped:
            return
        except NoAnswer as error:
            self._end("broken" if error.shown else "failed", error)
            return
        except Exception as error:  # nobody waits for this thread: the page must not wait for its answer for ever
            self._end("broken" if self.text else "failed", UserError(f"{type(error).__name__}: {error}"))
            raise
        self.tokens = found.completion_tokens or self.tokens
        self.prompt_tokens = found.prompt_tokens
        self._end("length" if found.finish_reason == "length" else "whole")

    def stop(self) -> None:
        """End it here: what has come stays. The request ends with the next piece that arrives."""
        self.stopped = True
        self._end("stopped")

    @property
    def speed(self) -> float:
        """Tokens per second, from the first one on."""
        elapsed = (self.seconds or time.monotonic() - self.started) - (self.first or 0.0)
        return (self.tokens - 1) / elapsed if self.tokens > 1 and elapsed > 0 else 0.0

    def _grow(self, piece: str) -> None:
        if self.stopped:
            raise _Stopped
        self.first = self.first or time.monotonic() - self.started
        self.text += piece
        self.tokens += 1

    def _end(self, state: State, error: UserError | None = None) -> None:
        if self.state == "running":  # what comes after a stop changes nothing
            self.seconds, self.error, self.state = time.monotonic() - self.started, error, state


@dataclass
class Turn:
    question: str
    replies: list[Reply]


class Talk:
    """What has been said on one page. A turn counts for a model only when its answer is whole."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.system = ""

    def ask(self, question: str, voices: list[Voice], sampling: Sampling, system: str) -> Turn:
        """Have a question answered by each of the voices; returns the turn, in which the answers grow."""
        self.system = system.strip()
        bodies = [request(sampling, voice.model, self.messages(place, question)) for place, voice in enumerate(voices)]
        turn = Turn(question, [Reply(voice.label) for voice in voices])
        self.turns.append(turn)
        for reply, voice, body in zip(turn.replies, voices, bodies, strict=True):
            threading.Thread(target=reply.make, args=(voice, body), daemon=True).start()
        return turn

    def messages(self, place: int, question: str) -> list[dict[str, Any]]:
        """What to send to the model in a place to have a question answered."""
        said = Conversation(Sampling(), self.system)
        for turn, reply in self._counting(place):
            said.turns.append((turn.question, reply.text))
        return said.ask(question)

    @property
    def running(self) -> bool:
        return any(reply.state == "running" for turn in self.turns[-1:] for reply in turn.replies)

    def stop(self) -> None:
        for turn in self.turns[-1:]:
            for reply in turn.replies:
                reply.stop()

    def rows(self) -> str:
        """The conversation with the first model as a JSON array of training rows; only answers that ended by themselves."""
        turns = [(turn, reply) for turn, reply in self._counting(0) if reply.state == "whole"]
        said = [
            message
            for turn, reply in turns
            for message in (
                {"role": "user", "content": turn.question},
                {"role": "assistant", "content": reply.text},
            )
        ]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return json.dumps([{"messages": [*system, *said]}] if said else [], ensure_ascii=False, indent=2) + "\n"

    def markdown(self) -> str:
        """All of it, for people: with both models, and what became of each answer."""
        parts = [f"> {line}" for line in self.system.splitlines()] + [""] if self.system else []
        for turn in self.turns:
            parts += [f"## {turn.question}", ""]
            for reply in turn.replies:
                ending = "" if reply.state == "whole" else f" ({reply.state})"
                parts += [f"**{reply.label}**{ending}", "", reply.text, ""]
        return "\n".join(parts)

    def _counting(self, place: int) -> list[tuple[Turn, Reply]]:
        """The turns that a model has answered, with its answers."""
        answered = [(turn, turn.replies[place]) for turn in self.turns if place < len(turn.replies)]
        return [(turn, reply) for turn, reply in answered if reply.state in WHOLE and reply.text]
