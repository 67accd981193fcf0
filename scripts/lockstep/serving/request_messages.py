"""Messages of a request, brought into the one form in which the server renders them as training did.

Clients send a text as a list of parts with marks for caches, null for what a message does not have, and the role
`developer`, OpenAI's newer name for `system`. What is no text is refused.
"""

import json
from typing import Any

from lockstep.data.field_checks import MEDIA_PARTS, TEXT_PARTS
from lockstep.serving.request_fields import drop_nulls

# Whatever else vLLM would take for media, by the key alone.
MEDIA_KEYS = {
    *MEDIA_PARTS, "input_image", "input_file", "image_pil", "image_embeds", "audio_embeds", "video_embeds",
    "prompt_embeds", "tool_reference",
}  # fmt: skip
# Fields of other services' answers, which clients send back and no template of ours is given; and a marker of one of
# vLLM's own renderers.
NOT_READ = ("annotations", "provider_specific_fields", "thinking_blocks", "reasoning_details", "task")
# The roles that data files know. A template writes a role as it comes, and so a made-up one could say anything there.
ROLES = ("system", "user", "assistant", "tool")
TEXT_ONLY = "messages here hold text only: no images, audio, video or files"
DEVELOPER = "developer"  # a system message by OpenAI's newer name; in data files, too


def tidy(messages: Any, most: int) -> str | None:
    """Rewrite messages, in place; returns why they are refused, or None.

    A content in parts becomes one text, as vLLM joins them. Messages of a wrong form are left to vLLM to refuse.

    Args:
        most: of them that are looked at.
    """
    if isinstance(messages, list) and len(messages) > most:
        return f"more than {most} messages"
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and (reason := _tidy(message)):
            return reason
    return None


def refuse_roles(messages: Any) -> str | None:
    """Why the roles of tidied messages are refused; None where training knows them all."""
    for message in messages if isinstance(messages, list) else ():
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role not in ROLES:
            return f"the role {role!r:.40} is not known here: {', '.join(ROLES)} and {DEVELOPER} are"
    return None


def tidy_tools(tools: Any) -> None:
    """Take out of tools, in place, what vLLM would write into the prompt and no data file can hold."""
    for tool in tools if isinstance(tools, list) else ():
        for part in (tool, tool.get("function")) if isinstance(tool, dict) else ():
            if isinstance(part, dict):
                part.pop("defer_loading", None)


def _tidy(message: dict[str, Any]) -> str | None:
    drop_nulls(message)
    if any(message.get(key) for key in MEDIA_KEYS):
        return TEXT_ONLY
    if message.get("tools"):
        return "tools of a message are not taken here: send them as the field tools, beside messages"
    if message.get("function_call") or message.get("role") == "function":
        return "function_call and the role function are OpenAI's older form: send tool_calls and the role tool"
    if message.get("role") == DEVELOPER:
        message["role"] = "system"
    parts = message.get("content")
    parts = [] if parts is None else parts if isinstance(parts, list) else [parts]
    if refused := message.pop("refusal", None):  # an answer that was no answer: its text stands beside the content
        parts = [*(part for part in parts if part != ""), refused]
    if isinstance(message.get("content"), list) or refused:
        texts = []
        for part in parts:
            if (text := _text_of(part)) is None:
                return _why_no_text(part)
            texts.append(text)
        message["content"] = "\n".join(texts)
    # One name for thoughts, as /tokenize does not know the older one; empty ones are none, as in data files.
    thoughts = [message.pop(name, None) for name in ("reasoning", "reasoning_content")]
    if message.get("role") == "assistant":
        thoughts.append(_detailed(message.get("reasoning_details")))
    if given := next(filter(None, thoughts), None):
        message["reasoning"] = given
    for name in NOT_READ:
        message.pop(name, None)
    calls = message.get("tool_calls")
    if calls == []:
        del message["tool_calls"]
    for call in calls if isinstance(calls, list) else ():
        _tidy_call(call)
    return None


def _detailed(details: Any) -> str:
    """The thought in `reasoning_details`, in which OpenRouter's clients send it back."""
    parts = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _text_of(part: Any) -> str | None:
    """The text of a part of a content, whatever else the part says; None where it is no text."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or any(part.get(key) for key in MEDIA_KEYS):
        return None
    kind = part.get("type") or "text"
    text = part.get(TEXT_PARTS[kind]) if isinstance(kind, str) and kind in TEXT_PARTS else None
    return text if isinstance(text, str) else None


def _why_no_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("thinking", "reasoning"):
        return f"a part of the type {kind!r} is no text of a message: send it as the message's reasoning_content"
    if isinstance(kind, str) and kind in TEXT_PARTS and not any(part.get(key) for key in MEDIA_KEYS):
        return f"a part of the type {kind!r} has no text under {TEXT_PARTS[kind]!r}"
    return TEXT_ONLY


def _tidy_call(call: Any) -> None:
    """Without nulls, and with its arguments as JSON text, which is the only form that vLLM takes."""
    if not isinstance(call, dict):
        return
    drop_nulls(call)
    function = call.get("function")
    if isinstance(function, dict):
        drop_nulls(function)
        if isinstance(function.get("arguments"), dict):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        function.setdefault("arguments", "{}")
