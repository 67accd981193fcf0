"""Which prompts an endpoint makes, by ids or by their number."""

from typing import Any

from lockstep.verification import endpoint_tokens
from lockstep.verification.endpoint_client import Endpoint
from lockstep.verification.endpoint_tokens import Served
from lockstep.verification.expectation import Expectation
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

BOS = 7


def conversation(name: str, *roles: str) -> dict[str, Any]:
    messages = [{"role": role, "content": "x"} for role in roles]
    return {"name": name, "messages": messages, "prompt_ids": [BOS, *range(10, 10 + 3 * len(roles))]}


CONVERSATIONS = [conversation("plain", "user"), conversation("system", "system", "user")]
EXPECTED = Expectation("test", {"conversations": CONVERSATIONS, "special_ids": {"bos": BOS}}, None, {})
ENDPOINT = Endpoint("http://127.0.0.1:1/v1")


def proof(**served: Served) -> Proof:
    return endpoint_tokens.proof(ENDPOINT, EXPECTED, served)


def ids(name: str) -> list[int]:
    return next(list(known["prompt_ids"]) for known in CONVERSATIONS if known["name"] == name)


def test_equal_ids_pass_and_equal_counts_leave_it_open() -> None:
    assert proof(plain=Served(ids("plain"), 4), system=Served(ids("system"), 7)).status == PASSED
    assert proof(plain=Served(None, 4), system=Served(None, 7)).status == UNKNOWN
    assert proof(plain=Served(None, None, "refused")).status == UNKNOWN


def test_one_more_bos_is_told_by_ids_and_by_counts() -> None:
    for shown in (True, False):
        served = {
            name: Served([BOS, *ids(name)] if shown else None, len(ids(name)) + 1) for name in ("plain", "system")
        }
        assert proof(**served).diagnosis == "double_bos"


def test_where_the_system_prompt_goes_is_said() -> None:
    dropped = proof(plain=Served(None, 4), system=Served(None, 4))
    assert (dropped.status, dropped.diagnosis) == (FAILED, "other_template")
    assert "dropped or changed" in dropped.text
    added = proof(plain=Served(None, 9), system=Served(None, 7))
    assert "adds one" in added.text


def test_a_chat_that_counts_otherwise_than_its_tokenize_route_shows_differs() -> None:
    assert Served(ids("plain"), 9).differs(ids("plain"))
    assert not Served(None, None, "refused").differs(ids("plain"))


def test_both_texts_are_shown_around_the_first_difference() -> None:
    shown = endpoint_tokens._first_difference("You are a cat.<|end|>", "You are a dog.<|end|>")
    assert shown == "'You are a cat.<|end|>' in training, 'You are a dog.<|end|>' here"
