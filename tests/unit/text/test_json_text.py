"""Duplicate keys are noticed or refused, and long integers are read."""

import json

import pytest

from lockstep.text import json_text


@pytest.mark.parametrize(
    ("text", "key"),
    [('{"a": 1, "a": 2}', "a"), ('{"b": 1, "a": 2, "b": 3, "a": 4}', "b"), ('{"a": 1, "b": 2}', None), ("{}", None)],
)
def test_one_rule_for_duplicate_keys_notices_or_refuses_them(text: str, key: str | None) -> None:
    value = json_text.loads(text)
    assert value == json.loads(text) and value.duplicate_key == key
    if key is None:
        assert json_text.loads_without_duplicates(text) == value
    else:
        for nested in (text, f"[{text}]", f'{{"outer": {text}}}'):
            with pytest.raises(ValueError, match=f"the key '{key}' stands twice"):
                json_text.loads_without_duplicates(nested)


def test_an_integer_of_any_length_is_read_where_a_record_may_hold_one() -> None:
    digits = "9" * (json_text.LONGEST_INT + 1)
    assert json_text.loads(f'{{"n": {digits[1:]}}}')["n"] == int(digits[1:])
    assert json_text.loads(f'{{"n": {digits}}}')["n"] == float("inf")
    with pytest.raises(ValueError, match="limit"):
        json_text.loads_without_duplicates(digits)
