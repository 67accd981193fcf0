"""A conversation with one model, or with two side by side: what was asked, and how each answer went.

Each answer is received in a thread of its own, so that two models answer at the same time, and the page
can be redrawn, or stop the answers, whatever the server does.
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

# Of an answer: `length`: cut off by max_tokens · `broken`: ended in the middle · `failed`: never began.
State = Literal["running", "whole", "length", "stopped", "broken", "failed"]
SENT_ON = ("whole", "length")  # answers that later questions are sent with


@dataclass(frozen=True)
class ServedModel:
    """A model at an endpoint, and the name that the page shows."""

    endpoint: Endpoint
    model: str
    label: str


class _Stopped(Exception):
    """The reader pressed Stop."""


@dataclass
class Reply:
    """One model's answer, as far as it has come.

    Attributes:
        label: the model's name on the page.
        text: what has come of the answer.
        state: see `State`.
        error: why there is no answer, or only part of one.
        tokens: as the server counted them; the pieces received so far, as long as the answer is not whole.
        prompt_tokens: as the server counted them.
        seconds: from the question to the end of the answer.
        first: seconds until the first piece.
        stopped: whether the reader pressed Stop.
        started: when it was asked, on the monotonic clock.
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

    def receive(self, model: ServedModel, body: dict[str, Any]) -> None:
        """Ask the model, and take the answer piece by piece; returns when it has ended."""
        try:
            answer = model.endpoint.ask(body, show=self._add)
            self.tokens = answer.completion_tokens or self.tokens
            self.prompt_tokens = answer.prompt_tokens
            self._end("length" if answer.finish_reason == "length" else "whole")
        except _Stopped:
            pass
        except NoAnswer as error:
            self._end("broken" if error.shown else "failed", error)
        finally:  # a fault of this program must not leave the page waiting; its traceback is in the terminal
            self._end("broken" if self.text else "failed", UserError("this page's program failed: see its terminal"))

    def stop(self) -> None:
        """End it here and keep what has come. The request ends with the next piece that arrives."""
        self.stopped = True
        self._end("stopped")

    @property
    def speed(self) -> float:
        """Tokens per second since the first one."""
        elapsed = (self.seconds or time.monotonic() - self.started) - (self.first or 0.0)
        return (self.tokens - 1) / elapsed if self.tokens > 1 and elapsed > 0 else 0.0

    def _add(self, piece: str) -> None:
        if self.stopped:
            raise _Stopped
        self.first = self.first or time.monotonic() - self.started
        self.text += piece
        self.tokens += 1

    def _end(self, state: State, error: UserError | None = None) -> None:
        if self.state == "running":  # the first end counts: nothing changes an answer that was stopped
            self.seconds, self.error, self.state = time.monotonic() - self.started, error, state


@dataclass
class Turn:
    question: str
    replies: list[Reply]


class ChatSession:
    """The conversation on one page. A turn counts for a model only if it has answered it."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.system = ""

    def ask(self, question: str, models: list[ServedModel], sampling: Sampling, system: str) -> Turn:
        """Have each of the models answer a question; returns the turn, in which the answers grow."""
        self.system = system.strip()
        bodies = [request(sampling, model.model, self.messages(pane, question)) for pane, model in enumerate(models)]
        turn = Turn(question, [Reply(model.label) for model in models])
        self.turns.append(turn)
        for reply, model, body in zip(turn.replies, models, bodies, strict=True):
            threading.Thread(target=reply.receive, args=(model, body), daemon=True).start()
        return turn

    def messages(self, pane: int, question: str) -> list[dict[str, Any]]:
        """What the model in a pane is sent to answer a question: its own history and the question."""
        conversation = Conversation(Sampling(), self.system)
        for turn, reply in self._answered(pane):
            conversation.turns.append((turn.question, reply.text))
        return conversation.ask(question)

    @property
    def running(self) -> bool:
        """Whether an answer is still coming."""
        return any(reply.state == "running" for reply in self._last_replies())

    def stop(self) -> None:
        """Stop the answers that are still coming."""
        for reply in self._last_replies():
            reply.stop()

    def _last_replies(self) -> list[Reply]:
        return self.turns[-1].replies if self.turns else []

    def rows(self) -> str:
        """The conversation with the first model as a JSON array of one training row, or none.

        Only answers that ended by themselves are part of it.
        """
        messages = []
        for turn, reply in self._answered(0):
            if reply.state == "whole":
                messages += [
                    {"role": "user", "content": turn.question},
                    {"role": "assistant", "content": reply.text},
                ]
        system = [{"role": "system", "content": self.system}] if self.system else []
        rows = [{"messages": [*system, *messages]}] if messages else []
        return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"

    def markdown(self) -> str:
        """The whole conversation for people to read: both models' answers, and what became of each."""
        parts = [f"> {line}" for line in self.system.splitlines()] + [""] if self.system else []
        for turn in self.turns:
            parts += [f"## {turn.question}", ""]
            for reply in turn.replies:
                ending = "" if reply.state == "whole" else f" ({reply.state})"
                parts += [f"**{reply.label}**{ending}", "", reply.text, ""]
        return "\n".join(parts)

    def _answered(self, pane: int) -> list[tuple[Turn, Reply]]:
        """The turns that the model in a pane has answered, with its answers."""
        replies = [(turn, turn.replies[pane]) for turn in self.turns if pane < len(turn.replies)]
        return [(turn, reply) for turn, reply in replies if reply.state in SENT_ON and reply.text]
