"""Draws and defaults of sampling."""

import math
import random

import pytest

from lockstep.verification import endpoint_sampling
from lockstep.verification.endpoint_client import LLAMA_CPP, OLLAMA, Endpoint
from lockstep.verification.endpoint_places import CONVERSATIONS, LogProbs, Place
from lockstep.verification.verdict import FAILED

PROBABILITIES = [0.3, 0.25, 0.15, 0.1, 0.08, 0.05, 0.03, 0.02]
PLACE = Place(CONVERSATIONS, "a", [1, 2], None, False, {n: math.log(p) for n, p in enumerate(PROBABILITIES)}, None)


def drawn(temperature: float, seed: int, count: int = endpoint_sampling.DRAWS) -> list[tuple[LogProbs, int]]:
    weights = [p ** (1 / temperature) for p in PROBABILITIES]
    return [(PLACE.trained, token) for token in random.Random(seed).choices(range(len(weights)), weights, k=count)]


def test_plain_draws_are_never_refused() -> None:
    assert max(abs(endpoint_sampling._off(drawn(1.0, seed), {})) for seed in range(300)) < endpoint_sampling.SIGMAS


def test_cold_draws_are_told_from_plain_ones() -> None:
    for seed in range(50):
        assert endpoint_sampling._off(drawn(0.2, seed), {}) > endpoint_sampling.SIGMAS
        assert abs(endpoint_sampling._off(drawn(0.2, seed), {"temperature": 0.2})) < endpoint_sampling.SIGMAS


def test_a_model_file_s_own_defaults_were_asked_for() -> None:
    top = {"temperature": 0.6, "top_k": 3, "top_p": 0.9}
    assert [p for p, _ in endpoint_sampling._outcomes(PLACE.trained, top)][3:] == [0.0] * 5
    assert endpoint_sampling._outcomes(PLACE.trained, {"do_sample": False})[0][0] == 1


def test_a_token_of_the_prompt_is_put_just_before_a_fresh_one() -> None:
    bias = endpoint_sampling._nearly_tied(PLACE, stops=[0])
    repeated, fresh = (PLACE.trained[token] + bias[str(token)] for token in (1, 3))
    assert repeated - fresh == pytest.approx(endpoint_sampling.AHEAD)
    assert not endpoint_sampling._nearly_tied(Place(CONVERSATIONS, "a", [77], None, False, PLACE.trained, None), [0])


@pytest.mark.parametrize(("temperature", "refused"), [(0.8, False), (1.0, False), (0.6, False), (0.3, True)])
def test_stated_defaults_are_right_where_they_are_the_engine_s_the_model_s_or_none(
    temperature: float, refused: bool
) -> None:
    settings = {"params": {"temperature": temperature, "top_k": 40, "repeat_penalty": 1.0}}
    endpoint = Endpoint("http://127.0.0.1:1/v1", engine=LLAMA_CPP, about={"default_generation_settings": settings})
    proof = endpoint_sampling.proof(endpoint, [], {"temperature": 0.6}, {}, [0])
    assert (proof.status == FAILED) == refused
    assert ("0.3" in proof.text) == refused


def test_a_modelfile_s_parameters_are_read() -> None:
    about = {"parameters": 'stop "<|im_end|>"\ntemperature 0.1\nnum_ctx 4096'}
    endpoint = Endpoint("http://127.0.0.1:1/v1", engine=OLLAMA, about=about)
    assert endpoint_sampling._stated(endpoint) == {"temperature": 0.1}
