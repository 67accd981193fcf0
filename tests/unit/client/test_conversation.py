"""A conversation's commands."""

import pytest

from lockstep.client.conversation import COMMANDS, Conversation
from lockstep.errors import UserError
from lockstep.settings.schema import Sampling


@pytest.fixture
def talk() -> Conversation:
    return Conversation(Sampling(), "你是甄嬛")


def test_history_and_system_message(talk: Conversation) -> None:
    talk.ask("你好")
    talk.add("免礼")
    assert [one["content"] for one in talk.ask("?")] == ["你是甄嬛", "你好", "免礼", "?"]
    talk.command("/system none")
    assert [one["role"] for one in talk.ask("?")] == ["user", "assistant", "user"]
    talk.command("/system two\nlines")
    talk.command("/reset")
    assert talk.ask("?")[0]["content"] == "two\nlines" and not talk.turns


def test_a_thought_goes_back_apart_from_its_answer(talk: Conversation) -> None:
    for answer, sent in (
        ("<think>\nx\n</think>\n\ny", {"content": "y", "reasoning_content": "x"}),
        ("<think>\nx\n</think>\n\n", {"content": "", "reasoning_content": "x"}),  # cut off
        ("<think>\nx", {"content": "<think>\nx"}),
        ("y</think>", {"content": "y</think>"}),
    ):
        talk.command("/reset")
        talk.ask("q")
        talk.add(answer)
        assert talk.ask("?")[2] == {"role": "assistant", **sent}


def test_the_last_question_is_asked_again_and_nothing_is_forgotten_before_the_new_answer(talk: Conversation) -> None:
    with pytest.raises(UserError):
        talk.ask_again()
    talk.ask("a")
    talk.add("b")
    for _ in range(2):  # fails, and again
        assert [one["content"] for one in talk.ask_again()] == ["你是甄嬛", "a"]
    assert [one["content"] for one in talk.ask("c")] == ["你是甄嬛", "a", "b", "c"]  # which fails, too
    assert [one["content"] for one in talk.ask_again()] == ["你是甄嬛", "a", "b", "c"]
    talk.add("d")
    talk.ask_again()
    talk.add("e")
    assert talk.turns == [("a", "b"), ("c", "e")]
    talk.command("/reset")
    with pytest.raises(UserError):
        talk.ask_again()


@pytest.mark.parametrize("name", Sampling.model_fields)
def test_every_sampling_setting_can_be_set_and_is_checked(talk: Conversation, name: str) -> None:
    assert talk.command(f"/set {name} 1") and getattr(talk.sampling, name) == 1
    talk.command(f"/set sampling.{name}=2" if name != "top_p" else "/set top_p=0.5")
    assert getattr(talk.sampling, name) == (2 if name != "top_p" else 0.5)
    with pytest.raises(UserError, match=rf"^{name}: .* \(got 'x'\)$"):
        talk.command(f"/set {name} x")
    with pytest.raises(UserError, match=name):
        talk.command(f"/set {name} -1000")
    assert getattr(talk.sampling, name) in (2, 0.5)


@pytest.mark.parametrize("line", ["hello", "/etc/passwd", " /你好", "/ reset", "1/2", "/retry"])
def test_what_is_no_command_is_a_question(talk: Conversation, line: str) -> None:
    assert talk.command(line) is None


def test_help_lists_what_there_is(talk: Conversation) -> None:
    for name in COMMANDS:
        assert name in str(talk.command("/help"))
    for wrong in ("/nonsense", "/stats maybe", "/set heat 1"):
        with pytest.raises(UserError):
            talk.command(wrong)
