"""What a model must not forget while it learns: short questions of general knowledge, and plain prose.

The panel is small: it shows that something broke, not by how much. A file of one's own in the same
form can take its place: {"questions": [{"question", "accepted": […], "language"}], "prose": [{"text",
"language"}]}, where each language is optional.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lockstep import paths
from lockstep.errors import UserError
from lockstep.evaluation import measures
from lockstep.evaluation.measures import Measure
from lockstep.text import cjk, normalise

PANEL = Path(__file__).with_name("forgetting.json")
LETTER = rf"[^\W{cjk.HAN}{cjk.KANA}]"  # of a word that has spaces around it, or a digit


class Question(BaseModel):
    """A question, and the strings of which a right answer contains one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    question: str = Field(min_length=1)
    accepted: list[str] = Field(min_length=1)
    language: str = ""


class Prose(BaseModel):
    """A paragraph, for the perplexity of a model that was not asked anything."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: str = Field(min_length=1)
    language: str = ""


class Panel(BaseModel):
    """Questions and paragraphs; one of the two may be empty."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    questions: list[Question] = []
    prose: list[Prose] = []


def load(path: Path = PANEL) -> Panel:
    """The panel of a file, ours by default.

    Raises:
        UserError: no such file, not of this form, empty, or a question that contains its own answer.
    """
    name = paths.label(path)
    try:
        panel = Panel.model_validate(json.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise UserError(f"{name}: {place + ': ' if place else ''}{first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is no JSON: {error}") from error
    if not panel.questions and not panel.prose:
        raise UserError(f"{name} has neither questions nor prose")
    for number, one in enumerate(panel.questions):
        if not all(normalise.normalise(text) for text in one.accepted):
            raise UserError(f"{name}: questions[{number}].accepted holds an empty text, which every answer contains")
        if is_right(one.question, one.accepted):
            raise UserError(f"{name}: questions[{number}] contains an accepted answer: repeating it would be right")
    return panel


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer contains an accepted string, both normalised, as whole words and whole numbers.

    CJK text has no spaces around words, so there any place counts. An answer that says more than
    what was asked is right, too, and so is one that names it to deny it.
    """
    said = normalise.normalise(answer)
    return any(_pattern(normalise.normalise(text)).search(said) for text in accepted)


def _pattern(text: str) -> re.Pattern[str]:
    before = rf"(?<!{LETTER})(?<!\d[.,])" if re.match(LETTER, text) else ""
    after = rf"(?!{LETTER})(?![.,]\d)" if re.match(LETTER, text[-1:]) else ""
    return re.compile(before + re.escape(text) + after)


def measure(questions: Sequence[Question], answers: Sequence[str]) -> Measure:
    """The share of questions answered right, to be compared as any other measure; one answer for each question."""
    pairs = zip(questions, answers, strict=True)
    return measures.share([is_right(answer, one.accepted) for one, answer in pairs])
