"""What one browser sees of a conversation: messages, notes on the answers, and its language."""

import html
from typing import Any

from lockstep.chat import phrases
from lockstep.chat.side_by_side import Reply, Talk
from lockstep.errors import UserError


class View:
    """What one browser sees.

    Attributes:
        shown: the state line and the models, as drawn last.
        suggested: the model and the one beside it that the page chose for the reader.
        trouble: why the last question has no answer.
    """

    def __init__(self) -> None:
        self.talk, self.language = Talk(), "en"
        self.trouble: UserError | None = None
        self.shown: Any = None
        self.suggested: tuple[str | None, str] | None = None

    def say(self, key: str, **values: object) -> str:
        return phrases.say(self.language, key, **values)

    def history(self, place: int) -> list[dict[str, str]]:
        """A pane's messages, as Gradio wants them: each answer is followed by a note on it."""
        said = []
        for turn in self.talk.turns:
            said.append({"role": "user", "content": turn.question})
            if place < len(turn.replies):
                reply = turn.replies[place]
                said += [{"role": "assistant", "content": reply.text}] if reply.text else []
                said.append({"role": "assistant", "content": self.note(reply)})
        return said

    def note(self, reply: Reply) -> str:
        """What became of an answer, its tokens and its speed."""
        if reply.state == "running" and not reply.text:
            return f'<span class="note waiting">{self.say("waiting")}</span>'
        parts = []
        if reply.state in ("stopped", "broken", "failed", "length"):
            reason = f": {phrases.error(self.language, reply.error)}" if reply.error else ""
            parts.append(f'<b class="mark">{self.say(reply.state)}{html.escape(reason)}</b>')
            parts += [self.say("uncounted")] if reply.state != "length" else []
        elif not reply.text:
            parts.append(self.say("empty"))
        if reply.tokens:
            exact = reply.state in ("whole", "length")
            parts.append(("" if exact else "≈ ") + self.say("tokens", n=reply.tokens))
            parts += [self.say("speed", n=reply.speed)] if reply.speed else []
        if reply.first is not None and reply.state != "running":
            parts.append(self.say("first", n=reply.first))
        if reply.prompt_tokens is not None:
            parts.append(self.say("prompt", n=reply.prompt_tokens))
        return f'<span class="note">{" · ".join(parts)}</span>'

    def turn_at(self, place: int, message: int) -> int:
        """Which turn one of a pane's messages belongs to."""
        said = [one["role"] for one in self.history(place)[: message + 1]]
        return max(said.count("user") - 1, 0)
