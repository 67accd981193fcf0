"""Five proofs and the verdict that follows from them."""

import itertools

import pytest

from lockstep.verification import verdict
from lockstep.verification.verdict import FAILED, PASSED, PROOFS, UNKNOWN, Proof


def proofs(**statuses: str | None) -> dict[str, Proof | None]:
    chosen = dict.fromkeys(PROOFS, PASSED) | statuses
    return {name: Proof(status) if status else None for name, status in chosen.items()}


@pytest.mark.parametrize("name", PROOFS)
def test_one_failed_proof_decides(name: str) -> None:
    others = {other: UNKNOWN for other in PROOFS if other != name}
    assert verdict.verdict(proofs(**{name: FAILED}, **others)) == verdict.NOT_IN_LOCKSTEP


@pytest.mark.parametrize("name", PROOFS)
def test_one_unknown_proof_leaves_it_undecided(name: str) -> None:
    assert verdict.verdict(proofs(**{name: UNKNOWN})) == verdict.UNDECIDED


def test_a_proof_that_does_not_apply_does_not_count_but_the_weights_always_do() -> None:
    assert verdict.verdict(proofs()) == verdict.verdict(proofs(adapter=None)) == verdict.IN_LOCKSTEP
    assert verdict.verdict(proofs(weights=None)) == verdict.UNDECIDED


@pytest.mark.parametrize("statuses", itertools.permutations([PASSED, FAILED, UNKNOWN]))
def test_the_gravest_of_several_looks_counts(statuses: tuple[str, ...]) -> None:
    looks = [Proof(status, {status: 1}, text=status) for status in statuses]
    merged = verdict.combined(looks)
    assert merged and (merged.status, merged.text) == (FAILED, FAILED) and set(merged.figures) == set(statuses)
    unknown = verdict.combined([look for look in looks if look.status != FAILED])
    assert unknown and unknown.status == UNKNOWN
    assert verdict.combined([]) is None


def test_the_diagnosis_of_the_gravest_look_comes_first() -> None:
    merged = verdict.combined([Proof(PASSED, diagnosis="merged_original"), Proof(FAILED, diagnosis="base")])
    assert merged and merged.diagnosis == "base"
    with pytest.raises(AssertionError):
        Proof(FAILED, diagnosis="wrong")


def test_the_json_has_every_proof() -> None:
    written = verdict.as_json(proofs(adapter=None))
    assert written["verdict"] == "in_lockstep" and list(written["proofs"]) == list(PROOFS)
    assert not written["proofs"]["adapter"]["applies"] and written["proofs"]["weights"]["status"] == "passed"
