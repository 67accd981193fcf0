"""What rows say about their own training, and what in them deserves a word.

Marks are obeyed, or the row is rejected by name: an answer that its author marked as bad must never be trained.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lockstep.data.field_checks import Rejected

# Marks of a turn: OpenAI's weight, ms-swift's loss and loss_scale, axolotl's train and training.
TURN_MARKS = ("weight", "loss", "loss_scale", "train", "training")
# Marks of a row: those of KTO in TRL and LLaMA-Factory, and those of turns.
ROW_MARKS = ("label", "kto_tag", "weight", "loss", "train", "training")

# {{NAME}}, ${NAME}, {NAME}, [Your Name]: what templates leave where somebody forgot to fill them in
_PLACEHOLDER = re.compile(
    r"\{\{\s*[^\W\d][\w .-]{0,40}\}\}|\$?\{[A-Z][A-Z_]{2,40}\}|\[(?i:your|insert)\b[^\[\]\n]{0,40}\](?!\()"
)
# What stands for a picture or a sound in LLaVA's, LLaMA-Factory's and ms-swift's rows: at an end of the text or on a
# line of its own. <video> and <image> are also tags of HTML and SVG, which stand in sentences or have attributes.
_MEDIUM = r"<(?:image|video|audio|image_placeholder|ImageHere|IMG_TOKEN)>"
_MEDIA = re.compile(rf"\A\s*({_MEDIUM})|({_MEDIUM})\s*\Z|^[ \t]*({_MEDIUM})[ \t]*$|(<img>[^<>]*</img>)", re.MULTILINE)
_CLOSED = re.compile(r"</(?:image|video|audio)>")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)  # where braces mean what they say


def is_trained(turn: Mapping[str, Any], place: int) -> bool | None:
    """What a turn's marks say; None without any. Raises Rejected where they are unclear."""
    answers = set()
    for name in TURN_MARKS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            reason = "wrong_type" if name == "weight" else "unclear_mark"
            raise Rejected(reason, f"{name} {value!r} in turn {place + 1}: 0 or 1 is known")
        answers.add(bool(value))
    if turn.get("train_detail"):
        raise Rejected("unclear_mark", f"train_detail in turn {place + 1}: a part of an answer cannot be left out")
    if len(answers) > 1:
        raise Rejected("unclear_mark", f"turn {place + 1} is marked both to be trained and not to be")
    return answers.pop() if answers else None


def row_mark(fields: Mapping[str, Any]) -> list[str]:
    """Names of the marks that a row holds. Raises Rejected where it is marked not to be trained."""
    names = []
    for name, value in fields.items():
        mark = name.casefold()
        if mark not in ROW_MARKS:
            continue
        in_words = value.strip().casefold() if isinstance(value, str) else value
        if in_words in ("true", "false") and not (mark == "label" and "prompt" not in fields):  # as CSV has them
            value = in_words == "true"
        if mark == "label" and "prompt" in fields and value in (0, 1):  # as TRL's trainer takes it
            value = bool(value)
        if value is False or (mark == "weight" and in_words in (0, 0.0, "0", "0.0")):
            raise Rejected("marked_untrained", f"{name}: {str(value).lower()}")
        if isinstance(value, bool):
            names.append(name)
    return names


def placeholder(texts: Iterable[str]) -> str | None:
    """The first placeholder in texts, outside of code."""
    for text in texts:
        if not any(opening in text for opening in ("{", "[")):
            continue
        if match := _PLACEHOLDER.search(_CODE.sub("", text) if "`" in text else text):
            return match.group()
    return None


def media_placeholder(texts: Iterable[str]) -> str | None:
    """The first placeholder for a picture or a sound in texts that are put to a model, outside of code."""
    for text in texts:
        if "<" not in text or _CLOSED.search(text):
            continue
        if match := _MEDIA.search(_CODE.sub("", text) if "`" in text else text):
            return match.group().strip()[:40]
    return None
