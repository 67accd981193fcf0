"""A conversation with one model or two, without a page."""

import json
import time
from typing import Any

import pytest
from support.checks import wait_for
from support.misbehaving import Server

from lockstep.chat.side_by_side import ChatSession, Reply, ServedModel
from lockstep.client.openai_client import Endpoint
from lockstep.settings.schema import Sampling


def models(server: Server, *names: str) -> list[ServedModel]:
    endpoint = Endpoint(server.url, retries=0)
    return [ServedModel(endpoint, name, name.upper()) for name in names]


def ask(session: ChatSession, question: str, asked: list[ServedModel], system: str = "") -> None:
    """Ask, and wait for the answers."""
    session.ask(question, asked, Sampling(), system)
    wait_for(lambda: not session.running)


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages]


def test_each_model_goes_on_with_its_own_answers(server: Server) -> None:
    server.answer = lambda model, question: f"{model}: {question}"
    session, both = ChatSession(), models(server, "r", "r-base")
    ask(session, "one", both, " be kind ")
    ask(session, "two", both, "be kind")
    for pane, name in enumerate(("r", "r-base")):
        history = contents(session.messages(pane, "three"))
        assert history == ["be kind", "one", f"{name}: one", "two", f"{name}: two", "three"]
    assert [reply.tokens for reply in session.turns[0].replies] == [len("r: one"), len("r-base: one")]
    (row,) = json.loads(session.rows())
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert "r-base" not in session.rows() and "**R-BASE**" in session.markdown()


def test_what_is_not_whole_is_shown_and_not_sent_on(server: Server) -> None:
    session, single = ChatSession(), models(server, "r")
    for mode, state in (("in the content", "broken"), ("429", "failed"), ("length", "length")):
        server.mode = mode
        ask(session, f"abc {mode}", single)
        assert session.turns[-1].replies[0].state == state
    assert contents(session.messages(0, "x")) == ["abc length", "htgnel cba", "x"]
    assert json.loads(session.rows()) == []  # an answer that was cut off is no lesson
    assert "(broken)" in session.markdown()


def test_a_stop_counts_at_once_even_before_the_first_piece(server: Server) -> None:
    server.pace = 0.3
    session = ChatSession()
    turn = session.ask("abcdef", models(server, "r"), Sampling(), "")
    session.stop()
    assert not session.running and turn.replies[0].state == "stopped"
    time.sleep(0.8)
    assert turn.replies[0].text == "" and turn.replies[0].state == "stopped"
    assert session.messages(0, "x") == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(("text", "state"), [("", "failed"), ("half", "broken")])
def test_a_fault_of_the_program_ends_the_answer_and_is_not_swallowed(text: str, state: str) -> None:
    class Faulty:
        def ask(self, body: dict[str, Any], show: Any) -> None:
            if text:
                show(text)
            raise ZeroDivisionError

    faulty: Any = Faulty()
    reply = Reply("R")
    with pytest.raises(ZeroDivisionError):
        reply.receive(ServedModel(faulty, "r", "R"), {})
    assert reply.state == state and "see its terminal" in str(reply.error)
