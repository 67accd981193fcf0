import random
from itertools import pairwise

import pytest

from lockstep.evaluation.text_diff import LEFT, RIGHT, SAME, spans


def test_chinese_differs_by_characters_and_english_by_words() -> None:
    assert spans("今天天气很好", "今天天气不好") == [(SAME, "今天天气"), (LEFT, "很"), (RIGHT, "不"), (SAME, "好")]
    assert spans("The cat sat down", "The dog sat down") == [
        (SAME, "The"),
        (LEFT, " cat"),
        (RIGHT, " dog"),
        (SAME, " sat down"),
    ]
    assert spans("用iPhone拍", "用iPad拍") == [(SAME, "用"), (LEFT, "iPhone"), (RIGHT, "iPad"), (SAME, "拍")]
    assert spans("a cat", "a cat sat") == [(SAME, "a cat"), (RIGHT, " sat")]
    assert spans('{"n": 1}', '{"n": 2}') == [(SAME, '{"n":'), (LEFT, " 1"), (RIGHT, " 2"), (SAME, "}")]


def test_equal_and_empty_texts() -> None:
    assert spans("same", "same") == [(SAME, "same")]
    assert spans("", "") == []
    assert spans("北京", "我不知道") == [(LEFT, "北京"), (RIGHT, "我不知道")]
    assert spans("", "new") == [(RIGHT, "new")] and spans("old", "") == [(LEFT, "old")]
    assert spans("aaaa", "aa a") == [(LEFT, "aaaa"), (RIGHT, "aa a")]
    assert spans("啊啊啊", "啊啊") == [(SAME, "啊啊"), (LEFT, "啊")]


def restored(left: str, right: str) -> list[str]:
    """Both texts, put together again from their pieces."""
    pieces = spans(left, right)
    kinds = [kind for kind, _ in pieces]
    assert all(text for _, text in pieces)
    for kind, following in pairwise(kinds):
        assert kind != following and (kind, following) != (RIGHT, LEFT)
    return [
        "".join(text for kind, text in pieces if kind in (SAME, LEFT)),
        "".join(text for kind, text in pieces if kind in (SAME, RIGHT)),
    ]


def test_the_pieces_are_both_texts_again() -> None:
    chance = random.Random(1)
    for _ in range(400):
        left, right = ("".join(chance.choices("天气好a b  \n🙂。,x", k=chance.randrange(40))) for _ in range(2))
        assert restored(left, right) == [left, right]


@pytest.mark.parametrize(("left", "right"), [
    ("哈呵" * 5000, "哈哈呵" * 4000), ("a " * 20_000, "b a " * 9_000), ("x" * 10_000, "y" * 10_000), ("哈呵" * 140, "哈哈呵" * 100),
])  # fmt: skip
def test_long_loops_end(left: str, right: str) -> None:
    """Compared without a limit these take minutes."""
    assert restored(left, right) == [left, right]


def test_what_two_long_texts_end_with_is_the_same() -> None:
    body = "".join(random.Random(2).choices("一二三四五六七八九十", k=8000))
    assert spans(f"前{body}", f"后{body}") == [(LEFT, "前"), (RIGHT, "后"), (SAME, body)]
    assert spans(f"{body}前", f"{body}后") == [(SAME, body), (LEFT, "前"), (RIGHT, "后")]
