"""What a model must not forget while it learns: short questions of general knowledge, and plain prose.

The panel is small: it shows that something broke, not by how much. A file of the user's in the same
form can replace it: {"questions": [{"question", "accepted": […], "language"}], "prose": [{"text",
"language"}]}, where every language is optional.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lockstep import paths
from lockstep.errors import UserError
from lockstep.evaluation import measures
from lockstep.evaluation.catalogue import scale
from lockstep.evaluation.measures import Measure
from lockstep.text import cjk, normalise

PANEL = Path(__file__).with_name("forgetting.json")
LETTER = rf"[^\W{cjk.HAN}{cjk.KANA}]"  # a letter of a script that separates words by spaces, or a digit


class Question(BaseModel):
    """A question, and the strings of which a right answer contains one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    question: str = Field(min_length=1)
    accepted: list[str] = Field(min_length=1)
    language: str = ""


class Prose(BaseModel):
    """A paragraph, for the perplexity of a model without any question."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: str = Field(min_length=1)
    language: str = ""


class Panel(BaseModel):
    """Questions and paragraphs; one of the two may be empty."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    questions: list[Question] = []
    prose: list[Prose] = []


def load(path: Path = PANEL) -> Panel:
    """The panel of a file, by default the one that comes with Lockstep.

    Raises:
        UserError: the file is missing, has another form or is empty, or a question contains its own answer.
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
    for number, question in enumerate(panel.questions):
        if not all(normalise.normalise(text) for text in question.accepted):
            raise UserError(f"{name}: questions[{number}].accepted holds an empty text, which every answer contains")
        if is_right(question.question, question.accepted):
            raise UserError(
                f"{name}: questions[{number}] contains an accepted answer: repeating the question would count as right"
            )
    return panel


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer contains an accepted string as whole words and whole numbers, both normalised.

    CJK text has no spaces around words, so any place in it counts. An answer that says more than was
    asked is right as well, and so is one that names the accepted string only to deny it.
    """
    normalised = normalise.normalise(answer)
    return any(_pattern(normalise.normalise(text)).search(normalised) for text in accepted)


def _pattern(text: str) -> re.Pattern[str]:
    # neither inside a longer word nor inside a longer number: 12 is not in 12.5 or 1,12
    before = rf"(?<!{LETTER})(?<!\d[.,])" if re.match(LETTER, text) else ""
    after = rf"(?!{LETTER})(?![.,]\d)" if re.match(LETTER, text[-1:]) else ""
    return re.compile(before + re.escape(text) + after)


def share_right(questions: Sequence[Question], answers: Sequence[str]) -> Measure:
    """The share of questions that are answered correctly.

    Raises:
        ValueError: not one answer for each question.
    """
    pairs = zip(questions, answers, strict=True)
    correct = [is_right(answer, question.accepted) for question, answer in pairs]
    return measures.share(correct, *scale("general_questions"))


def prose_perplexity(nats: Sequence[float], tokens: Sequence[float]) -> Measure:
    """The perplexity of the panel's paragraphs: for each the sum of −log p, and over how many tokens."""
    return measures.perplexity(nats, tokens, *scale("prose_perplexity"))
