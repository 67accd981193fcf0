"""What a request says about thinking: taken where it is what the run was trained with, refused otherwise.

Clients have many fields for it, and some send them always. Whether a model thinks is part of its prompts, and those
are fixed at training: by `data.thinking`, or by the template's own default.
"""

import re
from collections.abc import Iterator
from typing import Any

from lockstep.prompts import template_source
from lockstep.prompts.template import FAILURES, Template

FIELDS = ("reasoning_effort", "reasoning", "enable_thinking", "thinking", "think", "chat_template_kwargs")
# The types of the field `thinking` → what each asks for.
KINDS: dict[Any, tuple[bool, ...]] = {"enabled": (True,), "disabled": (False,), "auto": (), "adaptive": ()}
PROBE = [{"role": "user", "content": "?"}]
OPEN = re.compile(r"[<\[][\w:]*THINK[\w:]*[>\]]\s*$", re.IGNORECASE)  # a prompt that ends in a block of thought
# Arguments of the renderer, which no template needs to read for them to act.
RENDERER = {"chat_template", "add_generation_prompt", "continue_final_message", "messages", "tools", "documents"}


class Refused(Exception):
    """A request asks for another prompt than training rendered. Argument: why, for people."""


def thinks(chat: Template, trained: bool = False) -> bool:
    """Whether a run's model thinks: as it was fixed at training, or else as its prompts ask for it by themselves.

    Args:
        trained: whether it was trained with thoughts, which tells where prompts leave it to the model.
    """
    plain = _rendered(chat)
    for flag in template_source.thinking_flags(chat.text):
        fixed = re.search(r"\{%-? *set " + flag + r" = (true|false) *-?%\}", chat.text)
        if fixed:
            return fixed[1] == "true"
        on, off = _rendered(chat, **{flag: True}), _rendered(chat, **{flag: False})
        if on != off:
            return plain == on
    if OPEN.search(plain):
        return True
    marks = chat.thought_marks
    return trained and marks is not None and not plain.rstrip().endswith(marks[1])


def take(body: dict[str, Any], chat: Template, thinking: bool) -> str | None:
    """Take all that a body says about thinking out of it, in place; returns why it is refused, or None.

    Args:
        thinking: what `thinks` says.
    """
    try:
        for name in FIELDS:
            if name not in body:
                continue
            for wish in _wishes(name, body[name], chat):
                if wish != thinking:
                    state = "on" if thinking else "off"  # of the prompts: the rows need not have held any thought
                    raise Refused(f"{name}: thinking is fixed at training (--data.thinking), and {state} for this run")
            del body[name]
    except Refused as refused:
        return str(refused)
    return None


def _wishes(name: str, value: Any, chat: Template) -> Iterator[bool]:
    """Whether a field asks for thinking. Nothing where it leaves that open. Raises Refused."""
    if value is None or value in ("", {}):
        return
    if name == "chat_template_kwargs" and isinstance(value, dict):
        words = {*RENDERER, *re.findall(r"\w+", chat.text)}
        for key, inner in value.items():
            yield from _wishes_of_argument(key, inner, chat, words)
    elif name == "reasoning_effort" and isinstance(value, str):
        yield from _wishes_of_effort(value, chat)
    elif name == "reasoning" and isinstance(value, dict) and not value.keys() - {"effort", "enabled", "exclude"}:
        yield from _wishes("reasoning_effort", value.get("effort"), chat)
        yield from _wishes("enable_thinking", value.get("enabled"), chat)
    elif name == "thinking" and isinstance(value, dict) and str(value.get("type")) in KINDS:
        if value.keys() != {"type"}:
            raise Refused("thinking: this server keeps no budget of thought")
        yield from KINDS[value["type"]]
    elif isinstance(value, bool) and name in ("enable_thinking", "thinking", "think"):
        yield value
    else:
        raise Refused(f"{name} is {value!r:.60}: thinking is fixed at training, and this field is no switch for it")


def _wishes_of_argument(key: str, value: Any, chat: Template, words: set[str]) -> Iterator[bool]:
    """The same of an argument for the template: what that does not read has no effect, and is taken.

    Args:
        words: of the template, and those that act without it.
    """
    if value is None:
        return
    if key in template_source.THINKING_FLAGS or key == "reasoning_effort":
        yield from _wishes(key, value, chat)
    elif key in words:
        raise Refused(f"chat_template_kwargs: {key!r:.60} would change the prompt that training saw")


def _wishes_of_effort(effort: str, chat: Template) -> Iterator[bool]:
    """The same of OpenAI's reasoning_effort, which some templates read; to others it is a switch, as to vLLM."""
    if "reasoning_effort" not in chat.text:
        yield effort != "none"
    elif _rendered(chat, reasoning_effort=effort) != _rendered(chat):
        raise Refused(f"reasoning_effort: the effort is fixed at training, and {effort!r:.40} is another")


def _rendered(chat: Template, **arguments: Any) -> str:
    """A short prompt with arguments for the template. What that refuses is as different as can be: an empty text."""
    try:
        return str(chat.tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True, **arguments))
    except FAILURES:
        return ""
