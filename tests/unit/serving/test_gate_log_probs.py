"""The gate's proofs 3 and 4 and what they call a fault; the real vLLM is asked in tests/e2e and tests/faults."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from lockstep.serving import gate_diagnosis, gate_foresight, gate_log_probs
from lockstep.serving.gate_bounds import Allowed, Bounds, of_report
from lockstep.serving.gate_divergence import KINDS, Distance, LogProbs, Place, divergence
from lockstep.serving.gate_findings import Findings

TOKENS = range(20)


def log_probs(logits: list[float]) -> LogProbs:
    """Of some tokens, beside which others have a hundredth of all."""
    total = math.log(sum(map(math.exp, logits))) - math.log(0.99)
    return {token: logit - total for token, logit in zip(TOKENS, logits, strict=True)}


def world(effect: float = 1.0, seed: int = 3) -> list[tuple[Place, list[float]]]:
    """Places of all kinds; and the logits of the trained model there, from which training moved so much.

    Bases are on record where they are in training: in held-out rows.
    """
    draw = random.Random(seed)
    places = []
    for kind in KINDS:
        for number in range(24):
            trained = [draw.gauss(0, 2) for _ in TOKENS]
            base = log_probs([logit - effect * draw.gauss(0, 1) for logit in trained])
            with_base = base if kind in ("rows", "ends") else None
            messages = {"messages": []} if kind == "chats" else None
            place = Place(kind, [1] * (number + 1), 0, log_probs(trained), with_base, messages)
            places.append((place, trained))
    return places


def served_as(spoil: Callable[[Place, list[float]], LogProbs], effect: float = 1.0) -> list[Distance]:
    answers = [(place, spoil(place, logits)) for place, logits in world(effect)]
    return [Distance(place, served, divergence(place.trained, served)) for place, served in answers]


def noisy(size: float, *kinds: str) -> Callable[[Place, list[float]], LogProbs]:
    """Logits that are off by so much, in places of these kinds; in all others as by rounding."""
    draw = random.Random(5)
    return lambda place, logits: log_probs([x + draw.gauss(0, size if place.kind in kinds else 0.01) for x in logits])


def scaled(share: float) -> Callable[[Place, list[float]], LogProbs]:
    def spoil(place: Place, logits: list[float]) -> LogProbs:
        if place.base is None:
            return log_probs(logits)
        return log_probs([place.base[token] + share * (place.trained[token] - place.base[token]) for token in TOKENS])

    return spoil


def by_ids(places: Sequence[Place], measured: list[Distance]) -> list[Distance]:
    """Asked by ids all is right."""
    assert all(place.messages is None and place.kind == "chats" for place in places) and measured
    return [Distance(place, place.trained, 0.0) for place in places]


def judged(
    measured: list[Distance], bounds: Bounds | None = None, certified: dict[str, float] | None = None
) -> Findings:
    bounds = bounds or Bounds(None, None, None, 64, 512)
    findings = Findings()
    allowed = bounds.allowed(dict.fromkeys(KINDS, 0.0001), certified or {})
    gate_log_probs._report(measured, allowed.by_kind, allowed, findings)
    gate_log_probs._judge(measured, allowed, bounds, findings, lambda places: by_ids(places, measured))
    return findings


@pytest.mark.parametrize(
    ("spoil", "named", "words"),
    [
        (noisy(0.01), None, ""),
        (noisy(0.5, *KINDS), "other_weights", "these are other weights"),
        (noisy(0.5, "long"), "other_rope", "beyond 1 tokens it is 0."),
        (noisy(0.5, "vocabulary"), "embeddings", "embeddings of tokens that no held-out row uses"),
        (noisy(0.5, "ends"), "end_token", "it would end them elsewhere"),
        (noisy(0.5, "chats"), "other_template", "they become other tokens there"),
        (noisy(0.5, "rows"), "other_weights", "on held-out rows it is"),
        (scaled(0.0), "no_effect", "it answers as the base does (effect of the training 0.00, which should be 1)"),
        (scaled(0.5), "scaled", "the effect of the training is 0.50 of what it should be"),
        (scaled(0.8), "scaled", "the effect of the training is 0.80"),
        (scaled(1.4), "scaled", "the effect of the training is 1.40"),
        (scaled(0.98), None, ""),
        (lambda place, logits: dict.fromkeys(TOKENS, math.nan), "other_weights", "inf nats a token"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_where_it_shows(
    spoil: Callable[[Place, list[float]], LogProbs], named: str | None, words: str
) -> None:
    findings = judged(served_as(spoil))
    assert findings.named == named and (words in findings.reasons[0] if named else not findings.reasons)
    assert findings.report["kl_kinds"].keys() == set(KINDS)


def test_conversations_that_are_as_far_off_by_ids_are_no_fault_of_messages() -> None:
    measured = served_as(noisy(0.5, "chats"))
    chats = [each for each in measured if each.place.kind == "chats"]
    named, reason = gate_diagnosis.fault_of_chats(measured, chats, Allowed(None, {}, {}))
    assert named == "other_weights" and reason.startswith("after conversations it is 0.")


def test_a_single_place_that_is_far_off_is_a_fault() -> None:
    def spoil(place: Place, logits: list[float]) -> LogProbs:
        return log_probs([9.0 if token == 19 else 0.0 for token in TOKENS]) if strange(place) else log_probs(logits)

    def strange(place: Place) -> bool:
        return place.kind == "vocabulary" and place.length == 7

    many = [each for each in served_as(spoil) for _ in range(40 if not strange(each.place) else 1)]
    many = [each for each in many for _ in range(10 if not strange(each.place) else 1)]
    findings = judged(many)
    assert findings.named == "embeddings" and findings.reasons[0].startswith("at 1 places it is up to ")


def test_the_bound_grows_with_noise_and_certificate_and_is_whatever_somebody_set() -> None:
    noise = {"rows": 0.001, "long": 0.005, "chats": 9.0}
    allowed = Allowed(None, noise, {"rows": 0.003, "vocabulary": 0.012})
    assert [allowed.of(kind) for kind in ("rows", "long", "vocabulary", "chats")] == [0.01, 0.015, 0.05, 0.05]
    assert (
        Allowed(None, {}, {}).whole == 0.01 and Allowed(0.2, noise, {}).of("long") == 0.2 == Allowed(0.2, {}, {}).whole
    )
    assert Allowed(None, {}, {"rows": 0.003, "vocabulary": 0.012}).of("vocabulary") == 0.024
    measured = {"kl_mean": 0.004, "kl_kinds": {"rows": 0.004, "long": 0.5}}
    report = {"strategy": "original", "candidates": {"original": measured}, "bound": 0.02}
    assert of_report(report) == {"rows": 0.004, "long": 0.02}
    del measured["kl_kinds"]  # of an earlier version
    assert of_report(report) == {"rows": 0.004}
    off = served_as(noisy(0.2, *KINDS))
    assert judged(off).reasons and not judged(off, Bounds(0.1, None, None, 64, 512)).reasons
    assert judged(off, certified=dict.fromkeys(KINDS, 0.015)).reasons == []


def test_a_gap_is_judged_where_somebody_set_its_bound() -> None:
    right = served_as(noisy(0.01))
    assert judged(right).report["logprob_gap"] > 0.005
    findings = judged(right, Bounds(None, 0.001, None, 64, 512))
    assert "and --serve.max_logprob_gap is 0.001" in findings.reasons[0]


@pytest.mark.parametrize("effect", [0.0, 0.01])
def test_a_training_that_rounding_hides_is_a_warning(effect: float) -> None:
    for spoil in (noisy(0.01), scaled(0.0)):
        findings = judged(served_as(spoil, effect))
        assert not findings.reasons and "which rounding can hide" in findings.warnings[0]
    assert judged(served_as(scaled(0.0), 0.06)).named == "no_effect"  # what can be told is told


def test_after_full_training_there_is_no_base_on_record() -> None:
    measured = [Distance(replace(each.place, base=None), each.served, each.kl) for each in served_as(noisy(0.01))]
    findings = judged(measured)
    assert findings.report["differs_from_base"] is None and not findings.reasons and not findings.warnings


def test_what_the_gate_will_find_of_a_merge_is_told_when_it_is_measured() -> None:
    ids = [[5, 6], [7, 8]]
    probe = {"kind": "rows", "input_ids": [5, 6, 7], "places": [1, 2], "ids": ids, "trained": [[-0.1, -3.0]] * 2,
             "base": [[-0.5, -1.5]] * 2}  # fmt: skip
    row = {"input_ids": [5, 6, 7], "places": [1, 2], "trained": [-3.0, -0.1], "base": [-1.5, -0.5]}
    recorded = {"rows": [row], "probes": [probe]}
    measured = {
        "kl_mean": 0.001,
        "kl_kinds": {"rows": 0.001, "vocabulary": 0.001},
        "logprob_gap": 0.02,
        "end_token_gap": 0.0,
    }
    report = {"strategy": "original", "candidates": {"original": measured}, "bound": 0.02}
    assert gate_foresight.of_merge(recorded, report, None, None) == ""
    note = gate_foresight.of_merge(recorded, report, 0.0005, None)
    assert note.startswith("the merge is 0.0010 nats a token from the trained model (KL, rows): the gate will not open")
    assert "the merge's tokens are 0.020 nats off" in gate_foresight.of_merge(recorded, report, None, 0.01)
    measured["kl_kinds"]["vocabulary"] = 0.05
    assert "the merge is 0.0500 nats a token from the trained model (KL, vocabulary)" in gate_foresight.of_merge(
        recorded, report, None, None
    )
    measured["kl_kinds"]["vocabulary"] = 0.001
    for probes in ([probe | {"base": [[-0.1001, -3.0]] * 2}], None):
        little = {"rows": [row | {"base": [-3.0, -0.1]}], "probes": probes}
        assert "which rounding can hide: no answer of a server" in gate_foresight.of_merge(little, report, None, None)
    assert gate_foresight.of_merge({"rows": [row | {"base": None}]}, report, None, None) == ""
