"""The arithmetic of the gate's proofs 3 and 4; the real vLLM is asked in tests/e2e and tests/faults."""

import random

import pytest

from lockstep.serving import gate_log_probs
from lockstep.serving.gate_findings import Bounds, Findings
from lockstep.serving.probe import Server

draw = random.Random(3)
BASE = [draw.uniform(-6, -1) for _ in range(200)]
TRAINED = [value + draw.uniform(0, 2) for value in BASE]


def judged(effect: float, noise: float = 0.01) -> Findings:
    """What is found of a model that goes so much of the way from the base to the trained one."""
    served = [
        base + effect * (trained - base) + draw.gauss(0, noise) for base, trained in zip(BASE, TRAINED, strict=True)
    ]
    found = Findings()
    gate_log_probs.check_effect(served, TRAINED, BASE, found)
    return found


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (1.0, None), (0.97, None), (0.0, "answers as the base does"), (0.4, "answers as the base does"),
        (0.6, "0.60 of what it should be"), (3.0, "3.00 of what it should be"), (-1.0, "answers as the base does"),
    ],
)  # fmt: skip
def test_the_effect_of_the_training_is_one_where_the_trained_model_is(effect: float, words: str | None) -> None:
    found = judged(effect)
    assert found.report["adapter_effect"] == pytest.approx(effect, abs=0.02)
    assert (words is None and not found.reasons) or words in found.reasons[0]
    assert found.report["differs_from_base"] == (effect > 0.5)


def test_an_effect_lost_in_noise_is_not_taken_for_one() -> None:
    lost = judged(1.0, noise=8.0)
    assert lost.reasons and lost.report["adapter_effect_error"] > 0.25
    found = Findings()
    gate_log_probs.check_effect(BASE, BASE, BASE, found)
    assert found.report["differs_from_base"] is False and "changed nothing" in found.reasons[0]
    after_full_training = Findings()
    gate_log_probs.check_effect(BASE, TRAINED, None, after_full_training)
    assert after_full_training.report["differs_from_base"] is None and not after_full_training.reasons


def test_places_are_spread_over_the_rows_and_hold_every_chosen_rows_end() -> None:
    rows = [{"places": list(range(5, 5 + length))} for length in (1, 2, 3, 4, 50, 400)] * 20
    chosen = gate_log_probs.chosen_positions(rows, 24)
    assert {row for row, _ in chosen} == set(range(0, 120, 5))
    for row in {row for row, _ in chosen}:
        places = [place for number, place in chosen if number == row]
        assert places[-1] == rows[row]["places"][-1] and len(set(places)) == len(places) <= gate_log_probs.PER_ROW + 1
    assert gate_log_probs.chosen_positions([], 24) == []


def test_a_bound_that_somebody_set_is_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that did little leaves less room, unless more was asked for; the way out is named."""

    def complete(self: Server, model: str, prompt: list[int], **_: object) -> dict[str, object]:
        return {"logprobs": {"token_logprobs": [-2.0 + (0.1 if len(prompt) % 2 else -0.1)]}}

    monkeypatch.setattr(Server, "complete", complete)
    row = {"input_ids": [1] * 6, "places": [3, 4, 5], "trained": [-2.0] * 3, "base": [-2.2] * 3}
    found = {}
    for gap, given in ((0.15, False), (0.15, True), (0.08, True)):
        found[gap, given] = judged = Findings()
        bounds = Bounds(gap, given, None, 64, 512)
        gate_log_probs.check_rows(Server("http://127.0.0.1:9/v1", "s"), "r", None, [row] * 24, bounds, judged)
        assert judged.report["logprob_gap"] == pytest.approx(0.1) and judged.report["differs_from_base"]
    assert not found[0.15, True].reasons and found[0.15, False].report["bound"] == pytest.approx(0.05)
    for case in ((0.15, False), (0.08, True)):
        (reason,) = found[case].reasons
        assert (
            "0.100 nats a token" in reason and "train for longer, or allow more with --serve.max_logprob_gap" in reason
        )


@pytest.mark.parametrize(
    ("effect", "gap", "end_gap", "given", "says"),
    [
        (0.5, 0.01, 0.01, False, ""),
        (0.5, 0.06, 0.01, False, "and the merge is 0.060 off: the gate will not open (bound 0.050)"),
        (0.1, 0.01, 0.03, False, "the merge's end-of-turn tokens are 0.030 off: the gate will not open"),
        (0.1, 0.01, 0.03, True, ""),
        (0.01, 0.001, 0.001, False, "changed the model by only 0.010 nats a token, which rounding can hide"),
    ],
)
def test_a_merge_that_the_gate_would_refuse_is_told_when_it_is_measured(
    effect: float, gap: float, end_gap: float, given: bool, says: str
) -> None:
    rows = [{"trained": [-1.0, -2.0], "base": [-1.0 - effect, -2.0 + effect]}] * 3
    note = gate_log_probs.foresee(rows, {"logprob_gap": gap, "end_token_gap": end_gap}, 0.05, given)
    assert (says in note) if says else note == ""
    assert gate_log_probs.foresee([row | {"base": None} for row in rows], {}, 0.05, given) == ""
