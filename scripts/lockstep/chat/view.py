"""What one browser sees of a conversation: messages, notes on the answers, and its language."""

import html
from typing import Any

from lockstep.chat import phrases
from lockstep.chat.side_by_side import ChatSession, Reply
from lockstep.errors import UserError


class View:
    """What one browser sees.

    Attributes:
        session: the conversation.
        language: en or zh.
        trouble: why the last question has no answer.
        drawn: the state line and the models, as drawn last.
        suggested: the model, and the one beside it, that the page chose for the reader.
    """

    def __init__(self) -> None:
        self.session, self.language = ChatSession(), "en"
        self.trouble: UserError | None = None
        self.drawn: Any = None
        self.suggested: tuple[str | None, str] | None = None

    def say(self, key: str, **values: object) -> str:
        """A phrase in the browser's language."""
        return phrases.say(self.language, key, **values)

    def history(self, pane: int) -> list[dict[str, str]]:
        """A pane's messages, as Gradio takes them: each answer is followed by a note about it."""
        messages = []
        for turn in self.session.turns:
            messages.append({"role": "user", "content": turn.question})
            if pane < len(turn.replies):
                reply = turn.replies[pane]
                if reply.text:
                    messages.append({"role": "assistant", "content": reply.text})
                messages.append({"role": "assistant", "content": self.note(reply)})
        return messages

    def note(self, reply: Reply) -> str:
        """What became of an answer, its tokens and its speed."""
        if reply.state == "running" and not reply.text:
            return f'<span class="note waiting">{self.say("waiting")}</span>'
        return f'<span class="note">{" · ".join([*self._ending(reply), *self._figures(reply)])}</span>'

    def _ending(self, reply: Reply) -> list[str]:
        """How an answer ended, where that is not by itself and with a text."""
        if reply.state in ("stopped", "broken", "failed", "length"):
            reason = f": {phrases.error(self.language, reply.error)}" if reply.error else ""
            mark = f'<b class="mark">{self.say(reply.state)}{html.escape(reason)}</b>'
            return [mark] if reply.state == "length" else [mark, self.say("uncounted")]
        return [] if reply.text else [self.say("empty")]

    def _figures(self, reply: Reply) -> list[str]:
        parts = []
        if reply.tokens:
            counted_by_server = reply.state in ("whole", "length")
            parts.append(("" if counted_by_server else "≈ ") + self.say("tokens", n=reply.tokens))
            if reply.speed:
                parts.append(self.say("speed", n=reply.speed))
        if reply.first is not None and reply.state != "running":
            parts.append(self.say("first", n=reply.first))
        if reply.prompt_tokens is not None:
            parts.append(self.say("prompt", n=reply.prompt_tokens))
        return parts

    def turn_at(self, pane: int, message: int) -> int:
        """Which turn one of a pane's messages belongs to."""
        roles = [entry["role"] for entry in self.history(pane)[: message + 1]]
        return max(roles.count("user") - 1, 0)
