"""What log-probabilities of an endpoint say of its weights."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from lockstep.verification import endpoint_weights
from lockstep.verification.endpoint_client import LLAMA_CPP, VLLM, Endpoint
from lockstep.verification.endpoint_log_probs import Way
from lockstep.verification.endpoint_places import HELD_OUT, LogProbs, Place
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof


def distribution(logits: list[float]) -> LogProbs:
    total = math.log(sum(map(math.exp, logits)))
    return {token: logit - total for token, logit in enumerate(logits)}


def place(number: int, kind: str = HELD_OUT) -> Place:
    logits = [math.sin(3 * number + token) for token in range(8)]
    change = [2 * math.cos(5 * number + 2 * token) for token in range(8)]
    trained = distribution([logit + more for logit, more in zip(logits, change, strict=True)])
    return Place(kind, str(number), [number], 0, False, trained, distribution(logits))


def between(share: float) -> Callable[[Endpoint, Place], LogProbs]:
    """An endpoint that is so far on the way from base to trained model."""

    def ask(_: Endpoint, at: Place) -> LogProbs:
        assert at.base
        return distribution([at.base[token] + share * (at.trained[token] - at.base[token]) for token in at.base])

    return ask


def proofs(ask: Callable[[Endpoint, Place], LogProbs], engine: str = VLLM, **about: Any) -> tuple[Proof, Proof | None]:
    endpoint = Endpoint("http://127.0.0.1:1/v1", engine=engine, about=about)
    way = Way("test", True, ask)
    distances = endpoint_weights.measure(endpoint, way, [place(number) for number in range(24)])
    assert distances
    return endpoint_weights.weights_proof(endpoint, way, distances), endpoint_weights.adapter_proof(distances)


def test_the_trained_model_passes() -> None:
    weights, adapter = proofs(between(1))
    assert weights.status == PASSED and weights.figures["endpoint_kl_trained"] == 0
    assert adapter and adapter.status == PASSED and adapter.figures["endpoint_effect"] == 1


@pytest.mark.parametrize(
    ("share", "weights", "adapter"), [(0.0, "base", "no_effect"), (0.6, "scaled", "scaled"), (2.0, "twice", "twice")]
)
def test_how_strong_the_training_acts_is_told(share: float, weights: str, adapter: str) -> None:
    of_weights, of_adapter = proofs(between(share))
    assert (of_weights.status, of_weights.diagnosis) == (FAILED, weights)
    assert of_adapter and (of_adapter.status, of_adapter.diagnosis) == (FAILED, adapter)


def test_other_weights_are_neither() -> None:
    weights, _ = proofs(lambda _, at: distribution([math.sin(7.7 * at.prompt[0] + 4 * token) for token in range(8)]))
    assert (weights.status, weights.diagnosis) == (FAILED, "other_weights")


def test_a_quantized_file_passes_within_its_bound_and_is_undecided_beyond() -> None:
    def rounded(_: Endpoint, at: Place) -> LogProbs:
        return distribution(
            [value + 0.25 * math.sin(9 * at.prompt[0] + 3 * token) for token, value in at.trained.items()]
        )

    weights, _ = proofs(rounded, LLAMA_CPP, model_ftype="Q4_K - Medium")
    assert 0.01 < weights.figures["endpoint_kl_trained"] < 0.05
    assert weights.status == UNKNOWN and weights.next  # Q4_K - Medium ends in no known name
    assert proofs(rounded, LLAMA_CPP, model_ftype="Q4_K_M")[0].status == PASSED
    assert proofs(rounded, VLLM)[0].status == FAILED


def test_only_the_long_row_off_is_another_rope() -> None:
    places = [*(place(number) for number in range(16)), place(99, "long")]

    def ask(endpoint: Endpoint, at: Place) -> LogProbs:
        return between(1 if at.kind == HELD_OUT else 0.2)(endpoint, at)

    endpoint, way = Endpoint("http://127.0.0.1:1/v1", engine=VLLM), Way("test", True, ask)
    distances = endpoint_weights.measure(endpoint, way, places)
    assert distances
    weights = endpoint_weights.weights_proof(endpoint, way, distances)
    assert (weights.status, weights.diagnosis) == (FAILED, "other_rope")


def test_what_the_certificate_of_a_merge_allowed_is_no_fault() -> None:
    places = [place(number) for number in range(24)]
    endpoint, way = Endpoint("http://127.0.0.1:1/v1", engine=VLLM), Way("test", True, between(0.8))
    plain = endpoint_weights.measure(endpoint, way, places)
    assert plain and endpoint_weights.weights_proof(endpoint, way, plain).status == FAILED
    certified = endpoint_weights.measure(endpoint, way, places, {"rows": plain.trained})
    assert certified and certified.bound == 2 * plain.trained
    assert endpoint_weights.weights_proof(endpoint, way, certified).status == PASSED


def test_nf4_weights_are_right_where_a_model_on_them_says_what_the_endpoint_says() -> None:
    places = [place(number) for number in range(24)]
    endpoint, way = Endpoint("http://127.0.0.1:1/v1", engine=VLLM), Way("test", True, between(0.7))
    distances = endpoint_weights.measure(endpoint, way, places)
    assert distances
    supposed = ("merged_dequantized", "the adapter acts on NF4 weights")
    weights = endpoint_weights.weights_proof(endpoint, way, distances, supposed)
    assert (weights.status, weights.diagnosis) == (PASSED, "merged_dequantized")
    adapter = endpoint_weights.adapter_proof(distances, supposed)
    assert adapter and adapter.status == PASSED
    assert endpoint_weights.weights_proof(endpoint, way, distances).status == FAILED  # without that
