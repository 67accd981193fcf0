"""A question of a run's own data, to try its model with."""

import contextlib
import itertools
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep.artifacts import filenames
from lockstep.prompts.template import Message

LONGEST = 300  # characters of a text
ROWS = 20  # among which a short one is looked for
JOINER = "\u200d"  # between two characters that are drawn as one, as in 👩‍💻


def of_run(run_dir: Path) -> list[Message] | None:
    """The first turn of one of the first rows, of a split that was not trained on where there is one.

    It is the user's message, and before it the row's own system message. The first row whose texts are short is taken;
    where there is none, the first question is shortened.

    Returns:
        None where no data has been made.
    """
    for split in (filenames.TEST, filenames.VALIDATION, filenames.TRAIN):
        openings = _openings(run_dir / filenames.DATA / split)
        short = (opening for opening in openings if all(len(message["content"]) <= LONGEST for message in opening))
        if openings:
            return next(short, [{"role": "user", "content": shortened(openings[0][-1]["content"])}])
    return None


def _openings(split: Path) -> list[list[Message]]:
    """What stands in each of the first rows before its first answer, if that is a user's text, or a system's and one.

    It is empty for files that are not there, or damaged: who needs them says so, and this is only an example.
    """
    from pyarrow import ipc, memory_map

    openings: list[list[Message]] = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        for file in sorted(split.glob("*.arrow")):
            with memory_map(str(file)) as source, ipc.open_stream(source) as stream:
                for messages in itertools.islice(_conversations(stream), ROWS - len(openings)):
                    openings.append(_opening(messages))
    return [opening for opening in openings if opening]


def _conversations(stream: Any) -> Iterator[list[Message]]:
    for batch in stream:
        for messages in batch.column("messages"):
            yield [{"role": turn["role"], "content": turn["content"]} for turn in messages.as_py()]


def _opening(messages: list[Message]) -> list[Message]:
    opening = list(itertools.takewhile(lambda turn: turn["role"] != "assistant", messages))
    usual = [turn["role"] for turn in opening] in (["user"], ["system", "user"])
    return opening if usual and opening[-1]["content"].strip() else []


def shortened(text: str) -> str:
    """The beginning of a text; it ends between two characters as they are drawn, and at a space where one is near."""
    if len(text) <= LONGEST:
        return text
    end = LONGEST
    while end > LONGEST // 2 and _joined(text, end):
        end -= 1
    space = max(text.rfind(mark, end - 20, end) for mark in " \n\t")
    return text[: space if space > 0 else end].rstrip() + "…"


def _joined(text: str, place: int) -> bool:
    """Whether the characters before and at a place are drawn as one: an accent, a skin tone, a joiner, a flag."""
    mark = text[place]
    if _is_flag(mark):  # two letters each
        before = itertools.takewhile(_is_flag, reversed(text[:place]))
        return len(list(before)) % 2 == 1
    tone = "\U0001f3fb" <= mark <= "\U0001f3ff"
    return tone or JOINER in (mark, text[place - 1]) or unicodedata.category(mark).startswith("M")


def _is_flag(mark: str) -> bool:
    return "\U0001f1e6" <= mark <= "\U0001f1ff"
