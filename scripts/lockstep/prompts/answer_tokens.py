"""Control tokens that an answer may hold: marks of thoughts and calls, which the model itself writes there.

A thinking model's answer comes back in the next request, with its `<think>`. Inside of an assistant's turn that is
harmless: only what opens or ends a turn or a role could make the rest of the text somebody else's. Such tokens are
the stop tokens, the tokenizer's own (bos, eos …), those whose names say so in any family, and all that the template
writes around messages of others. Gemma 4 has a thought in a channel, whose two tokens are known by where they stand.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from lockstep.errors import UserError
from lockstep.prompts import text_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

FIELDS = ("content", "reasoning", "reasoning_content")  # of an assistant's message: its own words
_MARKS = re.compile(
    r"think|thought|reason|(?:tool|function)[\W_▁]*calls?(?![a-z])|python_tag|arg_(?:key|value)|tool[\W_▁]*sep",
    re.IGNORECASE,
)
THOUGHT = re.compile(r"think|thought|reason", re.IGNORECASE)
_CALLED = "LockstepCalled"
_THOUGHT, _ANSWER = "LockstepThought", "LockstepAnswer"
_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "a", "parameters": {"type": "object", "properties": {}}},
}


class Renderer(Protocol):
    """What is asked of `template.Template`."""

    tokenizer: "PreTrainedTokenizerBase"
    end_text: str

    @property
    def stop_ids(self) -> list[int]: ...

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str: ...

    def whole(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str: ...


def of(chat: Renderer, controls: Sequence[str]) -> set[str]:
    """Those of a template's control tokens that an assistant's own words may hold."""
    added = chat.tokenizer.added_tokens_decoder
    special = {token.content: token.special for token in added.values()}
    others = {
        *(str(token) for token in chat.tokenizer.special_tokens_map.values()),
        *(added[number].content for number in chat.stop_ids if number in added),
    }
    around = list(_around_others(chat))
    own = list(_own(chat))
    held = {
        token
        for token in controls
        if token not in others
        and not any(token in text for text in around)
        and not text_tokens.opens_or_ends_a_turn(token, special[token], by_sign=not _MARKS.search(token))
        and (_MARKS.search(token) or any(token in text for text in own))
    }
    paired = {token for pair in _pairs(held) for token in pair}
    held = {token for token in held if token in paired or not THOUGHT.search(token)}  # a single one is a switch
    written = {*around_a_thought(chat, controls)[:2]}
    if not any(token in others or any(token in text for text in around) for token in written):
        held |= written
    return held


def thought_marks(chat: Renderer, tokens: set[str]) -> tuple[str, str] | None:
    """The tokens that begin and end a thought: <think> and </think>, [THINK] and [/THINK], …; None without such two.

    Args:
        tokens: that answers may hold.
    """
    begin, end, _ = around_a_thought(chat, sorted(tokens))
    return next(_pairs(tokens), (begin, end) if begin else None)


def around_a_thought(chat: Renderer, controls: Sequence[str]) -> tuple[str, str, str]:
    """The single token that the template writes before a thought of an answer, the one after it, and what follows the
    first one: a line break, or the name of the channel. All are empty where it writes none, or more than these."""
    user: Message = {"role": "user", "content": "a"}
    answer = {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT, "reasoning": _THOUGHT}
    with suppress(UserError):
        prompt, text = chat.render([user]), chat.whole([user, answer])
        before, thought, rest = text.removeprefix(prompt).partition(_THOUGHT)
        between, content, _ = rest.partition(_ANSWER)
        begin, end = ([token for token in controls if token in part] for part in (before, between))
        if text.startswith(prompt) and thought and content and len(begin) == len(end) == 1 and begin != end:
            return begin[0], end[0], before.partition(begin[0])[2]
    return "", "", ""


def _pairs(tokens: set[str]) -> Iterator[tuple[str, str]]:
    for first in sorted(tokens):
        for begin, end in (("<", "</"), ("[", "[/"), ("START", "END"), ("start", "end"), ("begin", "end")):
            last = first.replace(begin, end, 1)
            if THOUGHT.search(first) and last != first and last in tokens:
                yield first, last


def apart(messages: Any) -> tuple[list[str], Any]:
    """The assistants' own words, and all the rest of the messages."""
    words: list[str] = []
    rest: list[Any] = []
    for message in messages if isinstance(messages, list | tuple) else ():
        if isinstance(message, dict) and message.get("role") == "assistant":
            own = {name for name in FIELDS if isinstance(message.get(name), str)}
            words += [message[name] for name in FIELDS if name in own]
            message = {name: value for name, value in message.items() if name not in own}
        rest.append(message)
    return words, rest if isinstance(messages, list | tuple) else messages


def _around_others(chat: Renderer) -> Iterator[str]:
    """What the template writes for messages of users, systems and tools."""
    user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "a"}
    for messages in ([user], [system, user]):
        with suppress(UserError):
            yield chat.whole(messages)
    with suppress(UserError):
        result = {"role": "tool", "content": "a", "tool_call_id": "1", "name": "weather"}
        answered, called = (
            chat.whole([user, _call(), *more]).rpartition(_CALLED)[2] for more in ([result], list[Message]())
        )
        pairs = enumerate(zip(answered, called, strict=False))
        differ = next((place for place, (first, second) in pairs if first != second), min(len(answered), len(called)))
        # Both begin with the end of the call; a token that begins there belongs to what comes after.
        yield answered[1 + max(answered.rfind(mark, 0, differ) for mark in (">", "]", "\n")) :]


def _own(chat: Renderer) -> Iterator[str]:
    """What it writes within an answer."""
    user: Message = {"role": "user", "content": "a"}
    answers: list[Message] = [
        _call(),
        {"role": "assistant", "content": "a", "reasoning_content": "b", "reasoning": "b"},
    ]
    for answer in answers:
        with suppress(UserError):
            prompt = chat.render([user], [_TOOL])
            text = chat.whole([user, answer], [_TOOL])
            if text.startswith(prompt):
                yield text.removeprefix(prompt).rpartition(chat.end_text)[0]


def _call() -> Message:
    function = {"name": "weather", "arguments": {"city": _CALLED}}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
