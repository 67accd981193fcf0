import math
from typing import Any

import pytest

from lockstep.data import field_checks
from lockstep.data.field_checks import Rejected
from lockstep.text import json_text


def reason(check: Any, *arguments: Any) -> tuple[str, ...]:
    with pytest.raises(Rejected) as rejected:
        check(*arguments)
    return rejected.value.args


def test_text_is_text() -> None:
    assert field_checks.text_of({"a": "x"}, "a") == "x"
    assert field_checks.text_of({}, "a", "") == field_checks.text_of({"a": None}, "a", "") == ""
    assert reason(field_checks.text_of, {}, "a") == ("missing_a",)
    assert reason(field_checks.text_of, {"a": None}, "a") == ("wrong_type", "a: null")
    assert reason(field_checks.text_of, {"a": 3}, "a", "") == ("wrong_type", "a: int")
    assert reason(field_checks.text_of, {"a": "x\0"}, "a") == ("nul_character", "a")
    assert reason(field_checks.text_of, {"a": "\ud800"}, "a") == ("lone_surrogate", "a")


def test_content_in_parts_is_text_where_all_parts_are() -> None:
    text, picture = {"type": "text", "text": "x"}, {"type": "image_url", "image_url": "y"}
    assert field_checks.text_of({"content": [text]}, "content") == "x"
    refusal = {"type": "refusal", "refusal": "no", "id": "p", "cache_control": {"type": "ephemeral"}}
    assert field_checks.text_of({"content": [text, refusal, text]}, "content") == "x\nno\nx"
    table = {"type": "text", "text": "x", "image_url": None}  # a table gives every part the keys of all
    assert field_checks.text_of({"content": [table]}, "content") == "x"
    for parts in (
        [],
        [picture],
        [text, picture],
        ["x"],
        [text | {"image_url": "y"}],
        [{"type": ["text"], "text": "x"}],
    ):
        assert reason(field_checks.text_of, {"content": parts}, "content") == ("not_text", "content: list")
    assert reason(field_checks.text_of, {"content": [{"type": "text"}]}, "content") == ("wrong_type", "content: null")
    assert reason(field_checks.text_of, {"output": [text]}, "output") == ("wrong_type", "output: list")


def test_lists_are_lists_or_their_json() -> None:
    assert field_checks.items({"a": [1]}, "a") == field_checks.items({"a": "[1]"}, "a") == [1]
    assert reason(field_checks.items, {}, "a") == ("missing_a",)
    assert reason(field_checks.items, {"a": "["}, "a")[0] == "bad_json"
    assert reason(field_checks.items, {"a": "{}"}, "a") == ("wrong_type", "a must be a list")


def test_a_table_s_object_of_lists_is_a_list_of_objects() -> None:
    turns = {"from": ["human", "gpt"], "value": ["q", "a"]}
    assert field_checks.items({"a": turns}, "a") == [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for value in (
        {},
        {"from": ["human"], "value": ["q", "a"]},
        {"from": "human"},
        json_text.loads('{"from": ["human"]}'),
    ):
        assert reason(field_checks.items, {"a": value}, "a") == ("wrong_type", "a must be a list")


def test_media_are_rejected_unless_empty() -> None:
    field_checks.check_media({"images": [], "audio": None, "text": "image"})
    assert reason(field_checks.check_media, {"videos": ["v"]}) == ("not_text", "videos")


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (math.inf, "inf is no number in JSON"),
        ([math.nan], "nan is no number in JSON"),
        ({"a": {1, 2}}, "set is no type of JSON"),
        ([b"x"], "bytes is no type of JSON"),
    ],
)
def test_values_that_json_cannot_hold_are_rejected(value: Any, detail: str) -> None:
    assert reason(field_checks.check_json, value, "bad_tools") == ("bad_tools", detail)


def test_json_as_it_is_written_again() -> None:
    field_checks.check_json({"a": [1, 2.5, None, True, {"b": ("x",)}]}, "bad_tools")
    assert reason(field_checks.check_json, json_text.loads('{"a": [{"b": 1, "b": 2}]}'), "r") == ("duplicate_key", "b")
    deep: Any = []
    for _ in range(field_checks.DEEPEST + 1):
        deep = [deep]
    assert reason(field_checks.check_json, deep, "r") == ("r", "nested deeper than 100 levels")
    assert reason(field_checks.check_json, {"k\0": 1}, "r") == ("nul_character", "tools")
