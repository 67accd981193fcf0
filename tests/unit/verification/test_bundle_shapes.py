"""Contract and reference of a stranger's bundle: what a run writes is taken, what has another form is named."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from lockstep.verification import bundle_shapes

CONTRACT = {
    "conversations": [{"name": "plain", "messages": [{"role": "user", "content": "a"}], "prompt_ids": [1, 2]}],
    "stop_ids": [2],
    "special_ids": {"bos": None, "eos": 2},
    "vocabulary": {"size": 3},
}
LIKELIEST = {"ids": [1], "logprobs": [-0.1]}
REFERENCE = {
    "dtype": "bfloat16",
    "golden": [{"name": "plain", "trained": LIKELIEST, "base": None}],
    "rows": [
        {
            "input_ids": [1, 2, 2], "places": [1, 2], "start": 1, "trained": [-0.1, -0.2], "base": None,
            "end": {"id": 2, "trained": -0.2, "base": None},
        }
    ],
}  # fmt: skip


def test_what_a_run_writes_is_taken() -> None:
    assert bundle_shapes.fault(CONTRACT, REFERENCE) == ""


CHANGES: list[tuple[Callable[[Any, Any], object], str]] = [
    (lambda contract, _: contract["conversations"].clear(), "its contract has another form (conversations)"),
    (lambda contract, _: contract["conversations"][0].pop("prompt_ids"), "(conversations.0.prompt_ids)"),
    (lambda contract, _: contract.update(stop_ids="2"), "its contract has another form (stop_ids)"),
    (lambda _, reference: reference.update(rows={}), "its reference has another form (rows)"),
    (lambda _, reference: reference["rows"][0].update(trained=[float("nan"), 0.0]), "(rows.0.trained.0)"),
    (lambda _, reference: reference["rows"][0].update(trained=[0.0]), "(rows.0)"),
    (lambda _, reference: reference["rows"][0].update(places=[1, 3]), "(rows.0)"),
    (lambda _, reference: reference["rows"][0].update(places=[0, 2]), "(rows.0)"),
    (lambda _, reference: reference["golden"][0].update(trained={"ids": [1], "logprobs": []}), "(golden.0.trained)"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_another_form_is_named_by_its_place(change: Callable[[Any, Any], object], words: str) -> None:
    contract, reference = copy.deepcopy(CONTRACT), copy.deepcopy(REFERENCE)
    change(contract, reference)
    assert words in bundle_shapes.fault(contract, reference)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_what_is_no_object_is_refused(value: Any) -> None:
    assert bundle_shapes.fault(value, REFERENCE) == "its contract has another form"
    assert bundle_shapes.fault(CONTRACT, value) == "its reference has another form"
