"""What `verify` establishes: five proofs, each passed, failed or unknown, and the verdict that follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

PASSED: Final = "passed"
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"
PROOFS = ("weights", "adapter", "tokens", "stops", "sampling")
# What a model can be instead of the trained one; `found` in verify.json.
DIAGNOSES = frozenset(
    {
        "base", "merged_original", "merged_dequantized", "partial", "twice", "scaled", "other_template", "other_tokens",
        "lost_end_token", "extra_end_token", "other_rope", "double_bos", "wrong_dtype", "no_effect", "other_weights",
    }
)  # fmt: skip
IN_LOCKSTEP, NOT_IN_LOCKSTEP, UNDECIDED = "in_lockstep", "not_in_lockstep", "undecided"
EXIT_CODES = {IN_LOCKSTEP: 0, NOT_IN_LOCKSTEP: 1, UNDECIDED: 3}
_GRAVEST_FIRST = (FAILED, UNKNOWN, PASSED)


@dataclass(frozen=True)
class Proof:
    """What one look at files or at an endpoint establishes.

    Attributes:
        status: passed, failed or unknown.
        figures: measured values, by name.
        diagnosis: one of DIAGNOSES; what the model is, whether that is right or wrong. None: nothing is known of it.
        text: one line for people: what was compared, and the first difference.
        next: one line for people: what to do; empty where nothing is to be done.
    """

    status: Literal["passed", "failed", "unknown"]
    figures: dict[str, Any] = field(default_factory=dict)
    diagnosis: str | None = None
    text: str = ""
    next: str = ""

    def __post_init__(self) -> None:
        assert self.diagnosis is None or self.diagnosis in DIAGNOSES, self.diagnosis


def combined(proofs: Sequence[Proof]) -> Proof | None:
    """One proof of several of the same kind, such as of files and of an endpoint; None where there is none.

    The gravest counts, and all that are as grave are named: what an endpoint does cannot be inferred from the files
    that it was meant to serve.
    """
    if not proofs:
        return None
    gravest = min(proofs, key=lambda proof: _GRAVEST_FIRST.index(proof.status))
    figures: dict[str, Any] = {}
    for proof in proofs:
        assert not figures.keys() & proof.figures.keys(), "two looks give their figures the same name"
        figures |= proof.figures
    named = next((proof.diagnosis for proof in (gravest, *proofs) if proof.diagnosis), None)
    alike = [proof for proof in proofs if proof.status == gravest.status]
    texts = dict.fromkeys(proof.text for proof in alike if proof.text)
    steps = dict.fromkeys(proof.next for proof in alike if proof.next)
    return Proof(gravest.status, figures, named, "; ".join(texts), "; ".join(steps))


def verdict(proofs: Mapping[str, Proof | None]) -> str:
    """The verdict over all proofs that apply.

    Args:
        proofs: by name, all of PROOFS; None: it does not apply to what was given, as the adapter's where there is none.
    """
    assert set(proofs) == set(PROOFS)
    statuses = {proof.status for proof in proofs.values() if proof}
    if FAILED in statuses:
        return NOT_IN_LOCKSTEP
    return IN_LOCKSTEP if statuses == {PASSED} and proofs["weights"] else UNDECIDED


def as_json(proofs: Mapping[str, Proof | None]) -> dict[str, Any]:
    """The content of verify.json: `verdict`, and each proof's `status`, `figures`, `found`, `next` and `text`."""
    return {
        "verdict": verdict(proofs),
        "proofs": {
            name: {
                "status": proof.status if proof else UNKNOWN,
                "applies": proof is not None,
                "figures": proof.figures if proof else {},
                "found": proof.diagnosis if proof else None,
                "text": proof.text if proof else "",
                "next": proof.next if proof else "",
            }
            for name, proof in proofs.items()
        },
    }
