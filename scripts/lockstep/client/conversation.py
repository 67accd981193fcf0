"""A conversation with a model: history, system message and sampling, and the commands that change them."""

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
THINK, ANSWER = "<think>\n", "\n</think>\n\n"  # around a thought, in a text that shows it with its answer
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Conversation:
    """The turns so far. A turn counts only when its answer is whole.

    Attributes:
        stats: whether to show tokens and seconds after each answer.
    """

    def __init__(self, sampling: Sampling, system: str | None = None, stats: bool = False) -> None:
        self.sampling, self.system, self.stats = sampling, system, stats
        self.turns: list[tuple[str, str]] = []
        self._asked: tuple[str, int] | None = None  # the last question, and after how many turns

    def ask(self, question: str) -> list[Message]:
        """The messages to send for a question."""
        self._asked = question, len(self.turns)
        return self._messages(*self._asked)

    def ask_again(self) -> list[Message]:
        """The messages to send for the last question again. Its answer, if it has one, counts until the new one comes.

        Raises:
            UserError: nothing has been asked.
        """
        if not self._asked:
            raise UserError("nothing was asked yet")
        return self._messages(*self._asked)

    def add(self, answer: str) -> None:
        """Add the whole answer to the question that was asked last, after its thought if it has one."""
        assert self._asked
        question, before = self._asked
        self.turns[before:] = [(question, answer)]

    def _messages(self, question: str, before: int) -> list[Message]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for earlier, answer in self.turns[:before]:
            messages += [{"role": "user", "content": earlier}, _answered(answer)]
        return [*messages, {"role": "user", "content": question}]

    def command(self, line: str) -> str | None:
        """Carry out a command; returns what to tell the user, or None where the line is a question.

        /retry is a question, too: see `ask_again`.

        Raises:
            UserError: there is no such command, or a setting cannot have that value.
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


def _answered(text: str) -> Message:
    """An answer as it is sent back: its thought apart, as the server gave it."""
    thought, end, answer = text.removeprefix(THINK).partition(ANSWER)
    if not text.startswith(THINK) or not end:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": answer, "reasoning_content": thought}
