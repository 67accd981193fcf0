"""A chat request as a line for bash, with curl."""

import json
import shlex
from typing import Any

from lockstep.endpoint import address, protocol
from lockstep.prompts.template import Message
from lockstep.settings.schema import Sampling

PLAIN_QUESTION = "你是谁？"  # where a run has no data here


def body(sampling: Sampling, model: str, messages: list[Message]) -> dict[str, Any]:
    """The JSON of a chat request, with the same fields that our own client sends."""
    return {"model": model, "messages": messages, **sampling.model_dump(exclude_none=True)}


def line(url: str, body: dict[str, Any]) -> str:
    """The command that sends a request. The key is named, not written, and stands in no process list.

    Args:
        url: of the endpoint, ending in /v1.
    """
    words = ["curl", "--silent", "--show-error", f"{url}/chat/completions", "-H", "Content-Type: application/json"]
    words += ["--noproxy", "*"] if address.is_local(url) else []
    words += ["-d", _visible(json.dumps(body, ensure_ascii=False))]
    # bash hands the key over as a file
    key = """ -H @<(printf 'Authorization: Bearer %s' "$LOCKSTEP_API_KEY")"""
    return shlex.join(words) + (key if protocol.key() else "")


def _visible(text: str) -> str:
    """JSON in which characters that a terminal would not show, or would obey, are written as escapes."""
    return "".join(mark if mark.isprintable() else json.dumps(mark)[1:-1] for mark in text)
