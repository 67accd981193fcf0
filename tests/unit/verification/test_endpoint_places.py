"""Places at which an endpoint is compared, and the divergence there."""

import math

import pytest

from lockstep.verification import endpoint_places
from lockstep.verification.endpoint_places import CONVERSATIONS, HELD_OUT

CONTRACT = {
    "conversations": [{"name": "a", "messages": [{"role": "user", "content": "?"}], "prompt_ids": [1, 2, 3]}]
}  # fmt: skip
GOLDEN = [{"name": "a", "trained": {"ids": [5, 6], "logprobs": [-0.1, -3.0]}, "base": None}]
ROW = {
    "input_ids": [1, 2, 3, 4, 9], "places": [3, 4], "start": 3, "trained": [-0.2, -0.3], "base": [-1.0, -2.0],
    "messages": [{"role": "user", "content": "?"}], "tools": None,
}  # fmt: skip


def test_conversations_and_rows_become_places() -> None:
    places = endpoint_places.of(CONTRACT, {"golden": GOLDEN, "rows": [ROW]}, None)
    conversation, first, end = places
    assert (conversation.kind, conversation.prompt, conversation.trained) == (
        CONVERSATIONS,
        [1, 2, 3],
        {5: -0.1, 6: -3},
    )
    assert (first.kind, first.prompt, first.token, first.trained, first.base) == (
        HELD_OUT, [1, 2, 3], 4, {4: -0.2}, {4: -1.0},
    )  # fmt: skip
    assert first.messages and not end.messages  # only the first token of an answer follows a prompt of messages
    assert not first.is_end and end.is_end


def test_probes_stand_in_for_rows_and_long_places_for_what_fits() -> None:
    probe = {
        "kind": HELD_OUT, "input_ids": [1, 2, 3], "places": [2], "ids": [[3, 4]], "trained": [[-0.1, -3.0]],
        "base": [[-2.0, -0.2]],
    }  # fmt: skip
    long = {
        "kind": "long",
        "input_ids": list(range(50)),
        "places": [48],
        "ids": [[1]],
        "trained": [[-1.0]],
        "base": None,
    }
    reference = {"rows": [ROW], "probes": [probe, long]}
    assert [place.kind for place in endpoint_places.of(CONTRACT, reference, None)] == [HELD_OUT, "long"]
    assert [place.kind for place in endpoint_places.of(CONTRACT, reference, 20)] == [HELD_OUT]


def test_divergence_is_that_of_the_partition() -> None:
    recorded = {1: math.log(0.5), 2: math.log(0.3)}
    served = {1: math.log(0.2), 2: math.log(0.3)}
    expected = 0.5 * math.log(0.5 / 0.2) + 0.2 * math.log(0.2 / 0.5)
    assert endpoint_places.divergence(recorded, served) == pytest.approx(expected)
    assert endpoint_places.divergence(recorded, recorded) == 0
    # an engine that tells the likeliest tokens only, and not one of them is on record
    assert endpoint_places.divergence({1: math.log(0.9)}, {}) == 0
    assert endpoint_places.divergence(recorded, {1: math.log(0.5)}) == pytest.approx(0)
