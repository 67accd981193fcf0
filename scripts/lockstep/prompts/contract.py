"""The token contract: test conversations with the exact prompt ids that training renders for them.

A server that tokenizes these conversations to the same ids gives the model the prompts that it was trained on.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic
from lockstep.errors import UserError
from lockstep.prompts.template import Message, Refused, Template
from lockstep.settings.schema import Data

GOLDEN = Path(__file__).with_name("golden.json")
FEWEST = 30  # conversations; with fewer, a difference could go unnoticed
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city. 查询天气。",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def golden() -> Iterator[tuple[str, list[Message]]]:
    """(name, messages) of every test conversation; each ends with a turn of the user."""
    for name, turns in atomic.read_json(GOLDEN).items():
        yield name, [{"role": role, "content": _repeated(text)} for role, text in turns]


def _repeated(text: str) -> str:
    if not text.startswith("REPEAT:"):
        return text
    body, times = text.removeprefix("REPEAT:").rsplit(":", 1)
    return body * int(times)


def _control_token(chat: Template, messages: list[Message]) -> str | None:
    for message in messages:
        if token := chat.control_token(message["content"]):
            return token
    return None


def build(chat: Template, data: Data) -> dict[str, Any]:
    """The contract of a run's template and tokenizer.

    Conversations that the template refuses, or that contain a control token of this tokenizer, are left out and
    listed with the reason.

    Raises:
        UserError: fewer than FEWEST conversations are left.
    """
    conversations, left_out = [], {}
    for name, messages in golden():
        if token := _control_token(chat, messages):
            left_out[name] = f"holds {token}"
            continue
        try:
            conversations.append({"name": name, "messages": messages, "prompt_ids": chat.prompt_ids(messages)})
        except Refused as error:
            left_out[name] = str(error)
    if "tools" in chat.text:
        messages = [{"role": "user", "content": "北京今天天气怎么样？"}]
        try:
            ids = chat.prompt_ids(messages, [TOOL])
            conversations.append({"name": "a tool", "messages": messages, "tools": [TOOL], "prompt_ids": ids})
        except Refused as error:
            left_out["a tool"] = str(error)
    if len(conversations) < FEWEST:
        reason = next(iter(left_out.values()))
        total = len(left_out) + len(conversations)
        raise UserError(f"the chat template takes only {len(conversations)} of {total} test conversations ({reason})")
    return {
        "template_sha256": hashlib.sha256(chat.text.encode()).hexdigest(),
        "special_ids": chat.special_ids,
        "stop_ids": chat.stop_ids,
        "thinking": data.thinking,
        "system_prompt": data.system_prompt,
        "date": data.date.isoformat() if "strftime_now" in chat.text else None,
        "conversations": conversations,
        "left_out": left_out,
    }
