"""Fields of JSON answers, counted by hand."""

import json

import pytest

from lockstep.evaluation import json_answers

REFERENCE = (
    '{"name": "李明", "items": [{"sku": "A", "n": 2}, {"sku": "B", "n": 1}], "address": {"city": "北京"}, "tags": []}'
)
ANSWER = '{"items":[{"sku":"A","n":"2"}],"name":"李明","address":{"city":"北京","zip":null},"tags":[]}'


def test_a_nested_field_is_named_by_its_path() -> None:
    assert json_answers.fields(REFERENCE) == {
        "name": '"李明"',
        "items[0].sku": '"A"',
        "items[0].n": "2",
        "items[1].sku": '"B"',
        "items[1].n": "1",
        "address.city": '"北京"',
        "tags": "[]",
    }


def test_fields_are_right_wrong_missing_or_extra() -> None:
    expected = json_answers.fields(REFERENCE)
    assert expected is not None
    assert json_answers.compare(json_answers.fields(ANSWER), expected) == {
        "name": "right",
        "items[0].sku": "right",
        "items[0].n": "wrong",
        "items[1].sku": "missing",
        "items[1].n": "missing",
        "address.city": "right",
        "tags": "right",
        "address.zip": "extra",
    }
    assert set(json_answers.compare(None, expected).values()) == {"missing"}


def test_shares_of_fields_by_hand() -> None:
    figures = json_answers.score_fields([ANSWER, f"```json\n{REFERENCE}\n```", REFERENCE], [REFERENCE] * 3)
    assert figures["json_valid"].value == pytest.approx(2 / 3)
    assert figures["field_accuracy"].value == pytest.approx((4 + 0 + 7) / 21)
    assert figures["field_accuracy"].row_values == pytest.approx([4 / 7, 0, 1])
    assert figures["field_missing"].value == pytest.approx((2 + 7) / 21)
    assert figures["field_extra"].value == pytest.approx(1 / 13)


def test_references_that_are_no_objects_have_no_fields() -> None:
    assert json_answers.score_fields([REFERENCE] * 2, [REFERENCE, "no object"]) == {}
    assert json_answers.score_fields([], []) == {}


@pytest.mark.parametrize("text", [
    "", "[1]", "3", "{", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}', "[" * 100_000, '{"a":' * 100_000,
])  # fmt: skip
def test_what_is_no_json_object(text: str) -> None:
    assert json_answers.fields(text) is None


def test_paths_and_values_of_json_are_not_mixed_up() -> None:
    assert json_answers.fields('{"a.b": 1}') != json_answers.fields('{"a": {"b": 1}}')
    assert json_answers.fields('{"a[0]": 1}') != json_answers.fields('{"a": [1]}')
    values = ['{"a": 1}', '{"a": 1.0}', '{"a": true}', '{"a": "1"}', '{"a": null}', "{}", '{"a": {}}']
    assert len({json.dumps(json_answers.fields(text)) for text in values}) == len(values)
