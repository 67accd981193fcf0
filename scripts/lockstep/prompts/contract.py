"""The token contract: test conversations with the exact prompt ids that training renders for them.

A server that tokenizes these conversations to the same ids gives the model the prompts that it was trained on.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.prompts import golden_tools, template, template_source, text_tokens, vocabulary
from lockstep.prompts.golden_tools import TOOL
from lockstep.prompts.template import Message, Refused, Template
from lockstep.settings.schema import Data

GOLDEN = Path(__file__).with_name("golden.json")
FEWEST = 30  # conversations; with fewer, a difference could go unnoticed
SPELLED = 64  # added tokens that are text, in a conversation of their own


def golden() -> Iterator[tuple[str, list[Message]]]:
    """(name, messages) of every test conversation; each ends with a turn of the user."""
    for name, turns in atomic.read_json(GOLDEN).items():
        yield name, [{"role": role, "content": _repeated(text)} for role, text in turns]


def training_template(model_dir: Path, text: str, allowed: Sequence[str] = ()) -> Template:
    """The template of a run, with a tokenizer that encodes added tokens without a meaning as text.

    Args:
        text: its Jinja source.
        allowed: added tokens that texts may hold, and that stay tokens there.

    Raises:
        UserError: see `template.load` and `Template`.
    """
    chat = template.load(model_dir, text, allowed)
    added = {number: token.content for number, token in chat.tokenizer.added_tokens_decoder.items()}
    used = {*allowed, *(added.get(number, "") for number in [*chat.stop_ids, *_configured(model_dir)])}
    rendered = [text, template_source.of_folder(model_dir) or "", *_renderings(chat)]
    ordinary = text_tokens.candidates(chat.tokenizer, used, rendered)
    tokenizer, as_text = text_tokens.without(chat.tokenizer, ordinary)
    return Template(tokenizer, text, allowed, as_text) if as_text else chat


def _configured(model_dir: Path) -> list[int]:
    """The ids that a model's own configs name: where texts begin and end, what pads, what stands for an image."""
    ids: list[int] = []
    for file in (model_dir / filenames.CONFIG, model_dir / filenames.GENERATION_CONFIG):
        config = atomic.read_json(file) if file.exists() else {}
        for part in (config, *(part for part in config.values() if isinstance(part, dict))):
            for name, value in part.items():
                if name.endswith(("_token_id", "_token_index")):
                    ids += value if isinstance(value, list) else [] if value is None else [value]
    return ids


def _renderings(chat: Template) -> Iterator[str]:
    """What the template writes of itself: some put their tokens together from parts."""
    system, ask, say = ({"role": role, "content": "a"} for role in ("system", "user", "assistant"))
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "a"}}}
    called: list[Message] = [
        {**say, "tool_calls": [call]},
        {"role": "tool", "content": "a", "tool_call_id": "1", "name": "weather"},
    ]
    thought = {**say, "reasoning_content": "a", "reasoning": "a"}
    conversations: list[list[Message]] = [
        [ask], [system, ask], [ask, say, ask], [ask, thought, ask], [ask, *called, thought, ask],
    ]  # fmt: skip
    for messages in conversations:
        for tools in (None, [TOOL]):
            with suppress(Refused):
                yield chat.render(messages, tools)


def _repeated(text: str) -> str:
    if not text.startswith("REPEAT:"):
        return text
    body, times = text.removeprefix("REPEAT:").rsplit(":", 1)
    return body * int(times)


def _control_token(chat: Template, messages: list[Message]) -> str | None:
    for message in messages:
        if token := chat.control_token(message["content"], message["role"] == "assistant"):
            return token
    return None


def _with_thoughts(chat: Template) -> Iterator[tuple[str, list[Message]]]:
    """(name, messages) of conversations with a thought in an answer: in its text, and apart from it."""
    if chat.thought_marks is None:
        return
    begin, end = chat.thought_marks
    ask, again = {"role": "user", "content": "2+2 等于几？"}, {"role": "user", "content": "And 3+3?"}
    thought, answer = "两个二。\nFour.", "4"
    inside = {"role": "assistant", "content": f"{begin}\n{thought}\n{end}\n\n{answer}"}
    beside = {"role": "assistant", "content": answer, "reasoning_content": thought, "reasoning": thought}
    yield "a thought in an earlier answer", [ask, inside, again]
    yield "a thought beside an earlier answer", [ask, beside, again]
    yield "thoughts in two earlier answers", [ask, inside, again, beside, ask]


def text_tokens_of(folder: Path) -> list[str]:
    """The added tokens that a folder's contract calls text; contracts of earlier versions name none."""
    names: list[str] = atomic.read_json(folder / filenames.CONTRACT).get("text_tokens", [])
    return names


def build(chat: Template, data: Data) -> dict[str, Any]:
    """The contract of a run's template and tokenizer.

    Conversations that the template refuses, or that contain a control token of this tokenizer, are left out and
    listed with the reason.

    Raises:
        UserError: fewer than FEWEST conversations are left.
    """
    conversations, left_out = [], {}
    for name, messages in (*golden(), *_with_thoughts(chat)):
        if token := _control_token(chat, messages):
            left_out[name] = f"holds {token}"
            continue
        try:
            conversations.append({"name": name, "messages": messages, "prompt_ids": chat.prompt_ids(messages)})
        except Refused as error:
            left_out[name] = str(error)
    if chat.text_tokens:
        messages = [{"role": "user", "content": " ".join(chat.text_tokens[:SPELLED])}]
        ids = chat.prompt_ids(messages)
        conversations.append({"name": "added tokens that are text", "messages": messages, "prompt_ids": ids})
    for name, messages, tools in golden_tools.conversations() if "tools" in chat.text else ():
        try:
            ids = chat.prompt_ids(messages, tools)
            conversations.append({"name": name, "messages": messages, "tools": tools, "prompt_ids": ids})
        except Refused as error:
            left_out[name] = str(error)
    if len(conversations) < FEWEST:
        reason = next(iter(left_out.values()))
        total = len(left_out) + len(conversations)
        raise UserError(f"the chat template takes only {len(conversations)} of {total} test conversations ({reason})")
    return {
        "template_sha256": hashlib.sha256(chat.text.encode()).hexdigest(),
        "special_ids": chat.special_ids,
        "stop_ids": chat.stop_ids,
        "text_tokens": chat.text_tokens,
        "thought_marks": list(chat.thought_marks or ()),
        "thinking": data.thinking,
        "system_prompt": data.system_prompt,
        "date": data.date.isoformat() if "strftime_now" in chat.text else None,
        "vocabulary": vocabulary.digests(chat),
        "conversations": conversations,
        "left_out": left_out,
    }
