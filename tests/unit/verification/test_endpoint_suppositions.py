"""Known faults of an adapter, tried on base and adapter, and told from one another."""

from pathlib import Path

import pytest
from support import tiny

from lockstep.verification import endpoint_suppositions
from lockstep.verification.expectation import Question, Supposition


@pytest.fixture(scope="module")
def suppositions(tmp_path_factory: pytest.TempPathFactory) -> list[Supposition]:
    folder: Path = tmp_path_factory.mktemp("trained")
    base = tiny.model(folder / "base", initializer_range=0.3)
    tiny.peft_adapter(folder / "adapter", base, r=8, lora_alpha=16)
    questions: list[Question] = [([5 + place, 9, 20 + 3 * place], list(range(40, 60))) for place in range(12)]
    return endpoint_suppositions.tried(base, folder / "adapter", questions)


def test_the_faults_that_tools_are_known_for_are_tried(suppositions: list[Supposition]) -> None:
    words = " · ".join(fault.words for fault in suppositions)
    for part in ("twice", "use_rslora", "lora_alpha is left out", "only attention", "only the first half"):
        assert part in words
    assert {fault.diagnosis for fault in suppositions} == {"twice", "scaled", "partial"}


def test_each_fault_is_told_from_all_others(suppositions: list[Supposition]) -> None:
    for fault in suppositions:
        named = endpoint_suppositions.nearest(suppositions, fault.answers, 1.0)
        assert named and named[0] == fault.diagnosis and named[1].startswith(fault.words)


def test_what_is_no_known_fault_is_not_named(suppositions: list[Supposition]) -> None:
    others = [{token: -3.0 + 0.01 * token * (-1) ** number for token in range(40, 60)} for number in range(12)]
    assert endpoint_suppositions.nearest(suppositions, others, 0.2) is None
    assert endpoint_suppositions.nearest([], others, 0.2) is None
