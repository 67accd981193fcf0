"""The arithmetic of KL over the tokens on record, against torch in float64; and which places are asked for."""

import math

import pytest
import torch

from lockstep.serving import gate_divergence
from lockstep.training import distributions

torch.manual_seed(0)
OURS, THEIRS = (torch.log_softmax(3 * torch.randn(40, 500, dtype=torch.float64), -1) for _ in range(2))
IDS = OURS.topk(20, -1).indices


def of(log_probs: torch.Tensor, row: int) -> dict[int, float]:
    return {token: log_probs[row, token].item() for token in IDS[row].tolist()}


def test_it_is_the_divergence_of_the_partition_and_below_the_whole_one() -> None:
    def partition(log_probs: torch.Tensor, row: int) -> torch.Tensor:
        kept = log_probs[row, IDS[row]].exp()
        return torch.cat([kept, 1 - kept.sum()[None]])

    both = distributions.partition_kl(OURS.gather(1, IDS), THEIRS.gather(1, IDS))
    for row in range(len(OURS)):
        ours, theirs = partition(OURS, row), partition(THEIRS, row)
        expected = torch.nn.functional.kl_div(theirs.log(), ours, reduction="sum").item()
        whole = torch.nn.functional.kl_div(THEIRS[row], OURS[row], reduction="sum", log_target=True).item()
        measured = gate_divergence.divergence(of(OURS, row), of(THEIRS, row))
        assert measured == pytest.approx(expected, rel=1e-9) == pytest.approx(both[row].item(), rel=1e-9)
        assert 0 < measured <= whole
        assert gate_divergence.divergence(of(OURS, row), of(OURS, row)) == pytest.approx(0, abs=1e-12)


def test_a_sure_answer_a_missing_value_and_what_cannot_be_are_numbers() -> None:
    sure = {1: -1e-9}
    assert gate_divergence.divergence(sure, {1: -1e-9}) == 0
    assert gate_divergence.divergence(sure, {1: -3.0}) == pytest.approx(3.0)
    assert gate_divergence.divergence({1: -1.0, 2: -2.0}, {1: math.nan, 2: -2.0}) == math.inf
    assert gate_divergence.divergence({1: -1.0}, {1: -9999.0}) > 1000  # vLLM's word for no probability
    assert gate_divergence.divergence({1: -1.0, 2: -2.0}, {1: -0.01, 2: -6.0}) < math.inf  # hardly anything is left


def probe(kind: str, length: int, places: list[int], base: bool = False) -> dict[str, object]:
    values = [[-0.1, -3.0]] * len(places)
    return {
        "kind": kind, "input_ids": list(range(length)), "places": places, "ids": [[place, 499] for place in places],
        "trained": values, "base": values if base else None,
    }  # fmt: skip


def test_the_longest_comes_first_and_what_does_not_fit_is_left_out() -> None:
    recorded = {
        "probes": [
            *(probe("rows", 9 + number, [3, 5, 8 + number], True) for number in range(8)),
            probe("vocabulary", 13, [12]),
            probe("long", 300, [100, 200, 299]),
        ]
    }
    places = gate_divergence.places_of(recorded, {"rows": 4}, 256)
    assert [place.length for place in places[:3]] == [200, 100, 14] and places[0].kind == "long"
    kinds = [place.kind for place in places]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"long": 2, "vocabulary": 1, "ends": 4, "rows": 8}
    assert all(place.base for place in places if place.kind in ("rows", "ends"))
    assert all(place.prompt == list(range(place.length)) and place.token == place.length for place in places)
    assert gate_divergence.means([("long", 1.0), ("rows", 1.0), ("rows", 3.0)]) == {"rows": 2.0, "long": 1.0}


def test_a_record_of_single_tokens_is_compared_by_them() -> None:
    row = {"input_ids": list(range(60)), "places": list(range(10, 60)), "trained": [-2.0] * 50, "base": None}
    places = gate_divergence.places_of({"rows": [row] * 3}, {"rows": 9}, 64)
    assert len(places) == 12 and {place.kind for place in places} == {"rows", "ends"}
    assert all(place.trained == {place.length: -2.0} for place in places)
    assert gate_divergence.divergence({7: -2.0}, {7: -2.1}) == pytest.approx(
        math.exp(-2) * 0.1 + (1 - math.exp(-2)) * math.log((1 - math.exp(-2)) / (1 - math.exp(-2.1)))
    )
