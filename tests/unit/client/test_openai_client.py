"""Asking a server that misbehaves: the right answer, or a reason why there is none."""

import threading
import time
from typing import Any

import pytest
from support.misbehaving import GARBAGE, Handler, Server

from lockstep.client import openai_client
from lockstep.client.openai_client import Endpoint
from lockstep.client.request_errors import NoAnswer
from lockstep.settings.schema import Sampling

EARLY = ("reset", "500", "429", "503", "after headers")  # nothing of an answer comes
LATE = (
    "in the content",
    "in a chunk",
    "no finish",
    "abort",
    "abort, then stop",
    "error event",
    "empty",
    "none",
    *GARBAGE,
)


def body(question: str) -> dict[str, Any]:
    return openai_client.request(Sampling(), "r", [{"role": "user", "content": question}])


def test_an_answer_and_its_figures(server: Server) -> None:
    whole = Endpoint(server.url).ask(body("olleh"), stream=False)
    streamed = Endpoint(server.url).ask(body("olleh"))
    for answer in (whole, streamed):
        assert (answer.text, answer.finish_reason) == ("hello", "stop")
        assert (answer.prompt_tokens, answer.completion_tokens) == (5, 5)
    assert whole.first_token_seconds is None and streamed.first_token_seconds is not None
    assert 0 < streamed.first_token_seconds <= streamed.seconds < 5
    server.mode = "length"
    assert Endpoint(server.url).ask(body("olleh")).finish_reason == "length"
    server.mode = "usage in words"
    for stream in (True, False):
        answer = Endpoint(server.url).ask(body("olleh"), stream)
        assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("hello", None, None)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_a_thought_is_shown_before_its_answer_and_kept_apart(server: Server, name: str) -> None:
    server.thought, server.pace = (name, "hm, so"), 0.2
    shown: list[str] = []
    streamed = Endpoint(server.url, timeout=1.0).ask(body("olleh"), show=shown.append)  # thinking is no silence
    assert "".join(shown) == "<think>\nhm, so\n</think>\n\nhello" == streamed.whole
    whole = Endpoint(server.url).ask(body("olleh"), stream=False)
    for answer in (whole, streamed):
        assert (answer.text, answer.reasoning) == ("hello", "hm, so")
    server.mode, shown = "length", []
    cut = Endpoint(server.url).ask(body(""), show=shown.append)  # in the middle of the thought
    assert "".join(shown) == "<think>\nhm, so\n</think>\n\n" and (cut.text, cut.reasoning) == ("", "hm, so")


@pytest.mark.parametrize("kind", ["whole", "hidden stream", "shown stream"])
@pytest.mark.parametrize("fault", EARLY + LATE)
def test_a_fault_is_retried_unless_something_was_shown(server: Server, fault: str, kind: str) -> None:
    server.fault = lambda question, attempt: fault if attempt == 0 else ""
    shown: list[str] = []
    notices: list[str] = []
    endpoint = Endpoint(server.url, retries=1, notice=notices.append)
    show = shown.append if kind == "shown stream" else None
    if show and fault in LATE:
        with pytest.raises(NoAnswer, match="the answer above is incomplete: ") as caught:
            endpoint.ask(body("olleh"), True, show)
        assert caught.value.shown and "hello".startswith("".join(shown)) and not notices
        assert server.tries["olleh"] == 1
    else:
        assert endpoint.ask(body("olleh"), kind != "whole", show).text == "hello"
        assert not show or "".join(shown) == "hello"
        assert server.tries["olleh"] == 2 and len(notices) == 1 and "(1 of 1)" in notices[0]


@pytest.mark.parametrize("fault", EARLY + LATE)
def test_retries_end_and_nothing_is_taken_for_an_answer(server: Server, fault: str) -> None:
    server.mode = fault
    for stream in (True, False):
        with pytest.raises(NoAnswer):
            Endpoint(server.url, retries=0).ask(body("olleh"), stream)


def test_a_server_says_how_long_to_wait(server: Server) -> None:
    server.wait = "1.5"
    server.fault = lambda question, attempt: "429" if attempt < 1 else ""
    started = time.monotonic()
    assert Endpoint(server.url).ask(body("olleh")).text == "hello"
    assert 1.5 <= time.monotonic() - started < 30
    server.wait, server.fault = "3600", lambda question, attempt: "429"
    with pytest.raises(NoAnswer, match=r"flooded \(429\): .* \(it asks to wait 3600 s\)"):
        Endpoint(server.url).ask(body("olleh"))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("fault", "code"),
    [("503", "being_checked"), ("loading", "loading"), ("429", "flooded"), ("500", "refused"), ("reset", "broke_off"), ("number for a text", "not_openai"),
     ("not json", "broke_off"), ("abort", "given_up"), ("error event", "given_up"), ("hang", "silent"),
     ("only pings", "silent"), ("accepted", "not_openai"), ("redirect", "refused")],
)  # fmt: skip
def test_every_failure_has_its_code(server: Server, fault: str, code: str) -> None:
    server.mode = fault
    with pytest.raises(NoAnswer) as caught:
        Endpoint(server.url, retries=0, timeout=1).ask(body("olleh"))
    assert caught.value.code == code


def test_half_an_answer_that_was_shown_has_a_code_of_its_own(server: Server) -> None:
    server.mode = "in the content"
    with pytest.raises(NoAnswer) as caught:
        Endpoint(server.url, retries=0).ask(body("olleh"), show=lambda piece: None)
    assert caught.value.code == "incomplete"


def test_a_refusal_is_not_repeated(server: Server) -> None:
    with pytest.raises(NoAnswer, match=r"refused \(400\)"):
        Endpoint(server.url).ask(body("too long"))
    assert len(server.seen) == 1


def test_a_server_that_was_killed_and_one_that_was_never_there(server: Server) -> None:
    with pytest.raises(NoAnswer, match=r"no server answers at http://127\.0\.0\.1:9/v1: start one with `make serve`"):
        Endpoint("http://127.0.0.1:9/v1", retries=0).ask(body("olleh"))
    notices: list[str] = []
    server.server_close()
    threading.Timer(0.1, server.shutdown).start()
    with pytest.raises(NoAnswer):
        Endpoint(server.url, retries=2, notice=notices.append).ask(body("olleh"))
    assert [notice[-8:] for notice in notices] == ["(1 of 2)", "(2 of 2)"]


def test_of_many_requests_one_that_fails_has_an_error_and_a_dead_server_ends_all(server: Server) -> None:
    endpoint = Endpoint(server.url, retries=0)
    assert endpoint.record(body("olleh"))["answer"] == "hello"
    assert "refused (400)" in endpoint.record(body("too long"))["error"]
    server.fault = lambda question, attempt: "500" if question == "poison" else ""
    assert "the engine is dead" in endpoint.record(body("poison"))["error"]
    server.fault = lambda question, attempt: "500"
    with pytest.raises(NoAnswer, match="the engine is dead"):
        endpoint.record(body("olleh"))
    with pytest.raises(NoAnswer, match="it serves r, r-base"):
        endpoint.record(body("olleh") | {"model": "gpt-4"})


@pytest.mark.parametrize("stream", [True, False])
def test_a_question_is_not_taken_to_another_server(server: Server, stream: bool) -> None:
    other = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
    server.mode, server.elsewhere = "redirect", f"{other.url}/chat/completions"
    with pytest.raises(NoAnswer, match=f"sends us on to {other.url}.*: questions are not taken there"):
        Endpoint(server.url).ask(body("olleh"), stream)
    other.shutdown()
    other.server_close()
    assert len(server.seen) == 1 and not other.seen


@pytest.mark.parametrize("stream", [True, False])
def test_of_several_choices_the_first_is_the_answer(server: Server, stream: bool) -> None:
    server.mode = "two choices"
    answer = Endpoint(server.url).ask(body("olleh"), stream)
    assert (answer.text, answer.finish_reason) == ("hello", "stop")


def test_pings_are_no_text_and_slow_text_is(server: Server) -> None:
    server.mode, started = "only pings", time.monotonic()
    with pytest.raises(NoAnswer, match=r"silent for 0\.5 s"):
        Endpoint(server.url, retries=0, timeout=0.5).ask(body("olleh"))
    assert time.monotonic() - started < 5
    server.mode, server.pace = "", 0.3  # 1.5 s in all
    assert Endpoint(server.url, retries=0, timeout=1).ask(body("olleh")).text == "hello"
