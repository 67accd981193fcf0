"""Fields of a record, checked for their types. All functions here raise Rejected with the reason's code."""

import math
from collections.abc import Mapping
from typing import Any

from lockstep.text import json_text
from lockstep.text.json_text import JsonObject
from lockstep.text.unicode import printable

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# What a part of a content is called that is text, and where its text stands.
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
MEDIA_PARTS = (*MEDIA, "image_url", "video_url", "audio_url", "input_audio", "file")
DEEPEST = 100  # levels of tools and arguments: what handles them recurses, here and in other programs


class Rejected(Exception):
    """Arguments: the reason's code, and what exactly."""


def parsed(text: str, reason: str) -> Any:
    """The value of a JSON text.

    Args:
        reason: the code with which a text that is not JSON is rejected.
    """
    try:
        return json_text.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected(reason, f"not JSON: {error}") from error


def items(fields: Mapping[str, Any], name: str) -> list[Any]:
    """A field that must be a list, or in tables the JSON text of one."""
    if name not in fields:
        raise Rejected(f"missing_{name}")
    value = fields[name]
    value = parsed(value, "bad_json") if isinstance(value, str) else value
    if isinstance(value, dict) and not isinstance(value, JsonObject):
        value = _transposed(value)
    if not isinstance(value, list):
        raise Rejected("wrong_type", f"{name} must be a list")
    return value


def _transposed(columns: dict[str, Any]) -> Any:
    """A list of objects from one of equally long lists, as tables of `datasets` have it; or the value itself."""
    lists = list(columns.values())
    if not lists or not all(isinstance(column, list) and len(column) == len(lists[0]) for column in lists):
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def text_of(fields: Mapping[str, Any], name: str, missing: Any = ...) -> str:
    """A field that must be text.

    Args:
        missing: stands for an absent or null field, unless it is `...`: then such a field is rejected.
    """
    if missing is not ... and fields.get(name) is None:
        return missing  # type: ignore[no-any-return]
    if name not in fields:
        raise Rejected(f"missing_{name}")
    value = fields[name]
    if name == "content" and isinstance(value, list):
        value = _joined(value, name)
    return _checked(value, name)


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{name}: {'null' if value is None else type(value).__name__}")
    check_text(value, name)
    return value


def _joined(parts: list[Any], name: str) -> str:
    """A content in parts, OpenAI's form for texts with pictures, whose parts are all text: joined as vLLM joins them.

    Further keys of a part, such as a mark for caches, say nothing of its text.
    """
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
        if key is None or any(part.get(medium) for medium in MEDIA_PARTS):
            raise Rejected("not_text", f"{name}: list")
        texts.append(_checked(part.get(key), name))
    if not texts:
        raise Rejected("not_text", f"{name}: list")
    return "\n".join(texts)


def check_text(text: str, name: str) -> None:
    """Reject the character that ends C strings, and what UTF-8 cannot hold."""
    if "\0" in text:
        raise Rejected("nul_character", name)
    if not text.isascii() and printable(text) != text:
        raise Rejected("lone_surrogate", name)


def check_media(fields: Mapping[str, Any]) -> None:
    """Reject pictures and sounds: leaving them out would change what the text means."""
    for name, value in fields.items():
        if value and (name in MEDIA or name.strip().casefold() in MEDIA):
            raise Rejected("not_text", name)


def check_json(value: Any, reason: str, depth: int = 0) -> None:
    """Reject values that would not be the same once they are written as JSON again, as tools and calls are."""
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
