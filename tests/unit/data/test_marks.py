"""Marks are obeyed or rejected by name."""

from typing import Any

import pytest

from lockstep.data import marks
from lockstep.data.field_checks import Rejected


@pytest.mark.parametrize("mark", marks.TURN_MARKS)
def test_marks_of_a_turn(mark: str) -> None:
    assert marks.is_trained({mark: False}, 0) is marks.is_trained({mark: 0}, 0) is False
    assert marks.is_trained({mark: True}, 0) is marks.is_trained({mark: 1.0}, 0) is True
    assert marks.is_trained({mark: None}, 0) is marks.is_trained({}, 0) is None
    for value in ("false", 0.5, 2, [], {}):
        with pytest.raises(Rejected, match=mark) as rejected:
            marks.is_trained({mark: value}, 0)
        assert rejected.value.args[0] == ("wrong_type" if mark == "weight" else "unclear_mark")


def test_marks_that_differ() -> None:
    with pytest.raises(Rejected, match="unclear_mark"):
        marks.is_trained({"loss": True, "weight": 0}, 2)
    with pytest.raises(Rejected, match="train_detail"):
        marks.is_trained({"train_detail": [{"train": False}]}, 0)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "label": False}, {"prompt": "q", "label": "False"}, {"prompt": "q", "label": 0}, {"label": False},
        {"kto_tag": False}, {"kto_tag": "false"}, {"weight": 0}, {"weight": "0"}, {"Train": False}, {"loss": False},
    ],
)  # fmt: skip
def test_a_row_that_is_marked_not_to_be_trained(row: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as rejected:
        marks.row_mark(row)
    assert rejected.value.args[0] == "marked_untrained"


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"prompt": "q", "label": True}, ["label"]), ({"kto_tag": "true"}, ["kto_tag"]), ({"label": None}, []),
        ({"label": "false"}, []), ({"label": 0}, []), ({"label": "spam"}, []), ({"loss": 0.0}, []), ({"weight": 0.5}, []),
        ({"train": "yes"}, []), ({"labels": False}, []), ({"prompt": "q", "label": 3}, []),
    ],
)  # fmt: skip
def test_what_is_no_such_mark(row: dict[str, Any], read: list[str]) -> None:
    assert marks.row_mark(row) == read


@pytest.mark.parametrize(
    "text",
    ["I am {{NAME}}.", "by {{ author }}", "${USER_NAME}", "I am {NAME}.", "Dear [Your Name],", "[insert date here]"],
)
def test_placeholders(text: str) -> None:
    assert marks.placeholder(["a", text]) is not None


@pytest.mark.parametrize(
    "text",
    ["{{", "{{ 7 * 7 }}", "`{{name}}`", "```\n{{name}}\n```", "$x{y}", "[1]", "[your site](https://a.b)", "{a: {b}}"],
)
def test_what_is_no_placeholder(text: str) -> None:
    assert marks.placeholder([text]) is None


@pytest.mark.parametrize(
    "text",
    [
        "<image>\nWhat is this?", "What is this?\n<image>", "<image><image>Compare.", "Look:\n <image> \nand tell me.",
        "<video>描述一下", "<audio>", "Picture 1: <img>a/b.jpg</img>\nWhat is it?",
    ],
)  # fmt: skip
def test_placeholders_of_pictures(text: str) -> None:
    assert marks.media_placeholder(["a", text]) is not None


@pytest.mark.parametrize(
    "text",
    [
        "What does the <video> tag of HTML do?", "Use <image> in SVG.", '<img src="a.png">', "`<image>`",
        "```\n<image>\n```", "<video>\n<source src='a'>\n</video>\nWhy is it black?", "<images>", "a < b",
        "Is it <img> or <image>?",
    ],
)  # fmt: skip
def test_what_is_no_placeholder_of_a_picture(text: str) -> None:
    assert marks.media_placeholder([text]) is None
