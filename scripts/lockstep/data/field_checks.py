"""Fields of a record: text is text, lists are lists, and whatever is not has its reason."""

import math
from collections.abc import Mapping
from typing import Any

from lockstep.text import json_text
from lockstep.text.json_text import JsonObject
from lockstep.text.unicode import printable

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
DEEPEST = 100  # levels of tools and arguments; all that handle them call themselves for each


class Rejected(Exception):
    """Arguments: the reason's code, and what exactly."""


def parsed(text: str, reason: str) -> Any:
    """The value of a JSON text. All functions here raise Rejected."""
    try:
        return json_text.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected(reason, f"not JSON: {error}") from error


def items(fields: Mapping[str, Any], name: str) -> list[Any]:
    """A list, or in tables its JSON text."""
    if name not in fields:
        raise Rejected(f"missing_{name}")
    value = fields[name]
    value = parsed(value, "bad_json") if isinstance(value, str) else value
    if not isinstance(value, list):
        raise Rejected("wrong_type", f"{name} must be a list")
    return value


def text_of(fields: Mapping[str, Any], name: str, missing: Any = ...) -> str:
    """A field that must be text; `missing` stands for an absent or null one, unless it is `...`."""
    if missing is not ... and fields.get(name) is None:
        return missing  # type: ignore[no-any-return]
    if name not in fields:
        raise Rejected(f"missing_{name}")
    value = fields[name]
    if name == "content" and isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("text") if value[0].get("type") == "text" else value  # one part of text is text
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise Rejected("not_text" if name == "content" and isinstance(value, list) else "wrong_type", f"{name}: {kind}")
    check_text(value, name)
    return value


def check_text(text: str, name: str) -> None:
    """Refuse what ends C strings, and what UTF-8 cannot hold."""
    if "\0" in text:
        raise Rejected("nul_character", name)
    if not text.isascii() and printable(text) != text:
        raise Rejected("lone_surrogate", name)


def check_media(fields: Mapping[str, Any]) -> None:
    """Refuse pictures and sounds: leaving them out would change what the text means."""
    for name in MEDIA:
        if fields.get(name):
            raise Rejected("not_text", name)


def check_json(value: Any, reason: str, depth: int = 0) -> None:
    """Tools and calls are written as JSON again: whatever would not come out as it went in is rejected."""
    if depth > DEEPEST:
        raise Rejected(reason, f"nested deeper than {DEEPEST} levels")
    if isinstance(value, str):
        check_text(value, "tools")
    elif isinstance(value, Mapping):
        if isinstance(value, JsonObject) and value.duplicate_key is not None:
            raise Rejected("duplicate_key", value.duplicate_key)
        for key, inner in value.items():
            check_text(key, "tools")
            check_json(inner, reason, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_json(inner, reason, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Rejected(reason, f"{value} is no number in JSON")
    elif value is not None and not isinstance(value, bool | int | float):
        raise Rejected(reason, f"{type(value).__name__} is no type of JSON")
