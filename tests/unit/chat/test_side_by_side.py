"""A conversation with one model or two, without a page."""

import json
import time

from support.checks import wait_for
from support.misbehaving import Server

from lockstep.chat.side_by_side import Talk, Voice
from lockstep.client.openai_client import Endpoint
from lockstep.settings.schema import Sampling


def voices(server: Server, *models: str) -> list[Voice]:
    endpoint = Endpoint(server.url, retries=0)
    return [Voice(endpoint, model, model.upper()) for model in models]


def asked(talk: Talk, question: str, speakers: list[Voice], system: str = "") -> None:
    talk.ask(question, speakers, Sampling(), system)
    wait_for(lambda: not talk.running)


def test_each_model_goes_on_with_its_own_answers(server: Server) -> None:
    server.answer = lambda model, question: f"{model}: {question}"
    talk, both = Talk(), voices(server, "r", "r-base")
    asked(talk, "one", both, " be kind ")
    asked(talk, "two", both, "be kind")
    for place, name in enumerate(("r", "r-base")):
        said = [message["content"] for message in talk.messages(place, "three")]
        assert said == ["be kind", "one", f"{name}: one", "two", f"{name}: two", "three"]
    assert [reply.tokens for reply in talk.turns[0].replies] == [len("r: one"), len("r-base: one")]
    (row,) = json.loads(talk.rows())
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert "r-base" not in talk.rows() and "**R-BASE**" in talk.markdown()


def test_what_is_not_whole_is_shown_and_not_sent_on(server: Server) -> None:
    talk, one = Talk(), voices(server, "r")
    for mode, state in (("in the content", "broken"), ("429", "failed"), ("length", "length")):
        server.mode = mode
        asked(talk, f"abc {mode}", one)
        assert talk.turns[-1].replies[0].state == state
    assert [message["content"] for message in talk.messages(0, "x")] == ["abc length", "htgnel cba", "x"]
    assert json.loads(talk.rows()) == []  # an answer that was cut off is no lesson
    assert "(broken)" in talk.markdown()


def test_a_stop_counts_at_once_even_before_the_first_piece(server: Server) -> None:
    server.pace = 0.3
    talk = Talk()
    turn = talk.ask("abcdef", voices(server, "r"), Sampling(), "")
    talk.stop()
    assert not talk.running and turn.replies[0].state == "stopped"
    time.sleep(0.8)
    assert turn.replies[0].text == "" and turn.replies[0].state == "stopped"
    assert talk.messages(0, "x") == [{"role": "user", "content": "x"}]
