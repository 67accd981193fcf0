"""A conversation with a model: its history, its system message and its sampling, and commands that change them."""

import itertools
import re

from pydantic import ValidationError

from lockstep.errors import UserError
from lockstep.prompts.template import Message
from lockstep.settings.schema import Sampling
from lockstep.settings.tree import NULLS

COMMANDS = {
    "/reset": "forget the conversation; the system message stays",
    "/system [TEXT]": "show the system message, or set it; `/system none` removes it",
    "/set [NAME VALUE]": "show the sampling settings, or change one: /set temperature 0.2",
    "/retry": "ask the last question again",
    "/stats [on|off]": "tokens and seconds after each answer",
    "/help": "show this list",
}
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Conversation:
    """What has been said so far. A turn counts only when its answer is whole.

    Attributes:
        stats: whether to show tokens and seconds after each answer.
    """

    def __init__(self, sampling: Sampling, system: str | None = None, stats: bool = False) -> None:
        self.sampling, self.system, self.stats = sampling, system, stats
        self.turns: list[tuple[str, str]] = []
        self._asked: tuple[str, int] | None = None  # the last question, and after how many turns

    def ask(self, question: str) -> list[Message]:
        """What to send to have a question answered."""
        self._asked = question, len(self.turns)
        return self._messages(*self._asked)

    def ask_again(self) -> list[Message]:
        """The same for the last question. Until that is answered anew, an answer that it has counts.

        Raises:
            UserError: nothing has been asked.
        """
        if not self._asked:
            raise UserError("nothing was asked yet")
        return self._messages(*self._asked)

    def add(self, answer: str) -> None:
        """The whole answer to what was asked."""
        assert self._asked
        question, before = self._asked
        self.turns[before:] = [(question, answer)]

    def _messages(self, question: str, before: int) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        said = [text for turn in self.turns[:before] for text in turn]
        return [*system, *({"role": role, "content": text}
                           for role, text in zip(itertools.cycle(("user", "assistant")), [*said, question], strict=False))]  # fmt: skip

    def command(self, line: str) -> str | None:
        """Do what a line commands and say what was done; None where it is no command, but a question.

        Only /retry is not done here: it is a question again, see `ask_again`.

        Raises:
            UserError: no such command, or a value that cannot be.
        """
        match = _COMMAND.fullmatch(line.strip())
        if not match or match[1] == "retry":
            return None
        name, rest = match[1], (match[2] or "").strip()
        if name == "reset":
            self.turns.clear()
            self._asked = None
            return "the conversation is forgotten"
        if name == "system":
            if rest:
                self.system = None if rest in NULLS else rest
            return f"system: {self.system or 'none'}"
        if name == "set":
            return self._set(rest)
        if name == "stats":
            if rest not in ("", "on", "off"):
                raise UserError(f"/stats takes on or off, not {rest!r}")
            self.stats = not self.stats if not rest else rest == "on"
            return f"stats {'on' if self.stats else 'off'}"
        if name == "help":
            return "\n".join(f"  {name:18} {text}" for name, text in COMMANDS.items())
        raise UserError(f"no command /{name}: /help lists them; begin with a space to ask this as a question")

    def _set(self, rest: str) -> str:
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        name, value = name.removeprefix("sampling."), value.strip()
        if name and name not in Sampling.model_fields:
            raise UserError(f"no setting {name!r}: there are {', '.join(Sampling.model_fields)}")
        if value:
            changed = self.sampling.model_dump() | {name: None if value in NULLS else value}
            try:
                self.sampling = Sampling.model_validate(changed)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise UserError(f"{name}: {message[0].lower()}{message[1:]} (got {value!r})") from error
        shown = self.sampling.model_dump()
        return "  ".join(f"{key} {shown[key]}" for key in ([name] if name else shown))
