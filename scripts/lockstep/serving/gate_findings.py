"""What the gate's proofs have in common: the bounds that they judge by, and the findings that they add to."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 16  # requests
STEPS = ("prompts", "stops", "log-probabilities", "whole answers")  # in the order in which the gate takes them

Tell = Callable[[str, str], None]


@dataclass(frozen=True)
class Bounds:
    """How far the served model may be from the trained one.

    Args:
        logprob_gap: nats a token, on the mean.
        as_given: somebody set that bound; otherwise it shrinks where the training itself changed little.
        min_stop_rate: share of answers that must end by themselves; None: few of them are only a warning.
        max_model_len: tokens of prompt and answer that the server takes.
        vocabulary: how many token ids the model has.
    """

    logprob_gap: float
    as_given: bool
    min_stop_rate: float | None
    max_model_len: int
    vocabulary: int


@dataclass
class Findings:
    """What the proofs find about a served name: fields of the report, reasons not to serve it, and warnings.

    Args:
        tell: is told which proof is in progress, and how far.
    """

    report: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tell: Tell = lambda step, detail: None

    def ask_all(self, step: str, question: Callable[[T], R], subjects: Sequence[T]) -> list[R]:
        """The answers to a question about each subject, in order; several are asked at once.

        Args:
            step: one of STEPS, to which the question belongs.
        """
        place = f"proof {STEPS.index(step) + 1} of {len(STEPS)} ({step})"
        answers = []
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            for answer in pool.map(question, subjects):
                answers.append(answer)
                self.tell(place, f"{len(answers)} of {len(subjects)} answered")
        finally:  # whoever is told to stop does not wait for the questions that are left
            pool.shutdown(wait=False, cancel_futures=True)
        return answers
