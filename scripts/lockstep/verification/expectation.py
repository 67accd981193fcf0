"""What the trained model does, as an endpoint is held against it: in the form in which a run puts it on record."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Question = tuple[list[int], list[int]]  # the tokens before a place, and those whose log-probabilities are asked for


@dataclass(frozen=True)
class Supposition:
    """A known fault, and what a model with it says.

    Attributes:
        diagnosis: one of verdict.DIAGNOSES.
        words: for people.
        answers: to each question: token id → natural logarithm of its probability.
    """

    diagnosis: str
    words: str
    answers: list[dict[int, float]]


@dataclass(frozen=True)
class Expectation:
    """What an endpoint must do if it serves the trained model.

    Attributes:
        source: where it comes from, for people: a bundle, a run, or the files that it was computed from here.
        contract: as contract.json: golden conversations with their prompt ids, stop ids, the vocabulary's digests.
        reference: as reference.json: log-probabilities of the trained model, and of its base; None: only tokens are
            known.
        sampling: what generation_config.json says of sampling, by transformers' names; nothing else was asked for.
        certified: how far the merged model was measured to be from the trained one, of each kind of places, in nats a
            token; empty where that is not known.
        tokenizer: a folder with the tokenizer and chat template of training; None: not at hand.
        suppositions: tries known faults of the adapter on questions; None: base and adapter are not at hand.
        suspects: for people, what a template may be instead → its folder; the base's own above all.
    """

    source: str
    contract: dict[str, Any]
    reference: dict[str, Any] | None
    sampling: dict[str, Any]
    certified: dict[str, float] = field(default_factory=dict)
    tokenizer: Path | None = None
    suspects: dict[str, Path] = field(default_factory=dict)
    suppositions: Callable[[list[Question]], list[Supposition]] | None = None
