"""Loops go, and what is meant to repeat stays."""

import json

import pytest

from lockstep.client import loop_removal

DUTY = "我愿为我这个做生母的尽尽义务"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{DUTY}，{DUTY}，{DUTY}。姐姐保重。", f"{DUTY}。姐姐保重。"),
        (f"姐姐，{DUTY}{DUTY}{DUTY}", f"姐姐，{DUTY}"),
        ("我知道了，好的。\n我知道了，好的。\n再见", "我知道了，好的。\n再见"),
        ("尽义务" * 9 + "。", "尽义务。"),
        ("I will do my duty. I will do my duty. i will do my duty! Goodbye.", "I will do my duty! Goodbye."),
        ("- buy some milk\n- buy some milk\n- go home", "- buy some milk\n- go home"),
        ("so it goes on " * 20 + "and on", "so it goes on and on"),
        ("好的，我这就去。" * 2 + "Then I go home. " * 3, "好的，我这就去。Then I go home. "),
    ],
)
def test_a_loop_is_said_once(text: str, wanted: str) -> None:
    assert loop_removal.remove(text) == wanted
    assert loop_removal.remove(wanted) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "", "哈哈哈哈哈哈哈哈哈哈", "嘻嘻哈哈嘻嘻哈哈", "好的。好的。", "研究研究，高高兴兴，一点一点地来", "是的，是的，我来了",
        "ha ha ha ha ha ha ha ha", "very, very, very good", "never, never, never give up", "no no no no no no",
        "1000000", "7 7 7 7 7 7", "1212121212", "3.33333333", "0 1 0 1 0 1 0 1", "====================", "……………………",
        "The cat sat. The cat sat on the mat.", "我喜欢吃苹果我喜欢吃苹果派",
        "1. 多喝热水\n2. 多喝热水\n3. 多喝热水",
        '{"a": "x y z, x y z, x y z"}', "```\nf(a, b)\nf(a, b)\nf(a, b)\n```", "| x y z |\n| x y z |\n| x y z |",
        "    go there now\n    go there now\n    go there now",
    ],
)  # fmt: skip
def test_what_may_be_meant_stays_to_the_byte(text: str) -> None:
    assert loop_removal.remove(text) == text


def test_data_of_any_kind_stays() -> None:
    rows = [{"name": "tea tea tea", "count": 1}] * 5
    assert loop_removal.remove(json.dumps(rows, indent=1)) == json.dumps(rows, indent=1)


def test_long_answers() -> None:
    assert len(loop_removal.remove("the quick brown fox " * 2000)) < 25
    for text in ("a " * 2000, "啊" * 4000, " ".join(str(n) for n in range(8000))):
        assert loop_removal.remove(text) == text
