"""What the gate's proofs have in common: the findings that they add to, and how they ask."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 16  # requests
STEPS = ("prompts", "stops", "log-probabilities", "whole answers")  # in the order in which the gate takes them

Tell = Callable[[str, str], None]


@dataclass
class Findings:
    """What the proofs find about a served name: fields of the report, reasons not to serve it, and warnings.

    Args:
        named: what the first reason is, in a word: see docs/files.md.
        tell: is told which proof is in progress, and how far.
    """

    report: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    named: str | None = None
    tell: Tell = lambda step, detail: None

    def refuse(self, named: str, reason: str) -> None:
        """Add a reason not to serve it.

        Args:
            named: what it looks like, in a word.
        """
        self.reasons.append(reason)
        self.named = self.named or named

    def ask_all(self, step: str, question: Callable[[T], R], subjects: Sequence[T], at_once: int = AT_ONCE) -> list[R]:
        """The answers to a question about each subject, in order; several are asked at once.

        Args:
            step: one of STEPS, to which the question belongs.
            at_once: how many.
        """
        place = f"proof {STEPS.index(step) + 1} of {len(STEPS)} ({step})"
        answers = []
        pool = ThreadPoolExecutor(at_once)
        try:
            for answer in pool.map(question, subjects):
                answers.append(answer)
                self.tell(place, f"{len(answers)} of {len(subjects)} answered")
        finally:  # whoever is told to stop does not wait for the questions that are left
            pool.shutdown(wait=False, cancel_futures=True)
        return answers
