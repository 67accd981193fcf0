"""What a browser is shown of a conversation."""

import pytest

from lockstep.chat.side_by_side import Reply, State, Turn
from lockstep.chat.view import View
from lockstep.errors import UserError


def reply_of(state: State, text: str = "hi", **more: object) -> Reply:
    reply = Reply("R", text=text, state=state)
    for name, value in more.items():
        setattr(reply, name, value)
    return reply


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (reply_of("running", text=""), "thinking…"),
        (reply_of("whole", tokens=11, seconds=3.0, first=1.0, prompt_tokens=7), "11 tokens · 5.0 tokens/s · first after 1.00 s · prompt 7"),
        (reply_of("length", tokens=2), "cut off at the token limit"),
        (reply_of("stopped", tokens=3, seconds=1.0), "not sent on with later questions · ≈ 3 tokens"),
        (reply_of("broken", error=UserError("<b>no</b>")), "broke off: &lt;b&gt;no&lt;/b&gt;"),
        (reply_of("whole", text=""), "an empty answer"),
    ],
)  # fmt: skip
def test_a_note_says_what_became_of_an_answer(reply: Reply, says: str) -> None:
    assert says in View().note(reply)


def test_a_message_leads_back_to_its_turn_in_each_pane() -> None:
    view = View()
    view.session.turns = [
        Turn("one", [reply_of("whole")]),
        Turn("two", [reply_of("failed", text=""), reply_of("whole")]),
        Turn("three", [reply_of("whole"), reply_of("whole")]),
    ]
    for pane in (0, 1):
        history = view.history(pane)
        turns = [view.turn_at(pane, n) for n, message in enumerate(history) if message["role"] == "user"]
        assert turns == [0, 1, 2]
    assert [message["content"] for message in view.history(1) if "note" not in message["content"]] == [
        "one", "two", "hi", "three", "hi",
    ]  # fmt: skip
