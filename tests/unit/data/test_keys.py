"""Other names of fields: understood where they cannot be mistaken, and never guessed."""

from typing import Any

import pytest

from lockstep.data import keys
from lockstep.data.records import Record
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject


def names(*rows: dict[str, Any], **settings: Any) -> dict[str, str]:
    records = [Record("f", n, JsonObject(list(row.items()))) for n, row in enumerate(rows, 1)]
    return keys.other_names(records, Data(**settings))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("query response", {"query": "instruction", "response": "output"}),
        ("question answer", {"question": "instruction", "answer": "output"}),
        ("Question ANSWER", {"Question": "instruction", "ANSWER": "output"}),
        ("问题 答案", {"问题": "instruction", "答案": "output"}),
        ("指令 输入 输出", {"指令": "instruction", "输出": "output", "输入": "input"}),
        ("prompt response", {"prompt": "instruction", "response": "output"}),
        ("instruction context response id", {"response": "output", "context": "input"}),
        ("input output", {"input": "instruction"}),
        ("query response system_prompt", {"query": "instruction", "response": "output", "system_prompt": "system"}),
        ("Instruction Input Output", {"Instruction": "instruction", "Input": "input", "Output": "output"}),
        ("Prompt Completion", {"Prompt": "prompt", "Completion": "completion"}),
        ("instruction Input output", {"Input": "input"}),
        # nothing to understand, or no telling what is meant
        ("instruction output response", {}),
        ("prompt completion answer", {}),
        ("question answer response", {}),
        ("query question answer", {}),
        ("question", {}),
        ("text", {}),
        ("prompt chosen rejected", {}),
        ("instruction output Output", {}),
        ("instruction Output OUTPUT", {}),
        ("Query query response", {}),
        ("query\u200b response", {}),
        ("instruction input\ufeff output", {}),
    ],
)
def test_names_that_a_file_has_instead_of_ours(row: str, expected: dict[str, str]) -> None:
    assert names(dict.fromkeys(row.split(" "), "x")) == expected


def test_a_mixed_file_and_settings_decide() -> None:
    ours, theirs = {"instruction": "q", "output": "a"}, {"query": "q", "response": "a"}
    assert names(theirs, theirs) != {} == names(theirs, ours)
    assert names(theirs, format="alpaca") == {}
    assert names({"ask": "q", "response": "a"}, columns=("instruction=ask",)) == {"response": "output"}
    assert names({"messages": [], "query": "q", "response": "a"}) != {}  # an empty list is no conversation
    assert names({"messages": [{}], "query": "q", "response": "a"}) == {}
    assert names() == {}


def test_a_list_of_turns_has_other_names() -> None:
    assert names({"dialogue": [{"role": "user"}]}) == {"dialogue": "messages"}
    assert names({"dialogue": "a text"}) == names({"dialogue": [{}], "turns": [{}]}) == {}


def test_settings_name_a_field_with_a_space_that_no_command_line_holds() -> None:
    for name in ("input ", "\ufeffinput", " input\u200b"):
        assert keys.renamed({name: "c", "output": "a"}, ("input=input",)) == {"input": "c", "output": "a"}
    assert keys.renamed({"input": "c", "input ": "d"}, ("input=input",)) == {"input": "c", "input ": "d"}


@pytest.mark.parametrize(
    "name", ["input ", " Input", "INPUT", "\ufeffinput", "in\u200bput", "ｉｎｐｕｔ", "input:", "_input"]
)
def test_near_misses(name: str) -> None:
    assert keys.near_miss({"instruction": "q", name: "c"}, keys.READ["alpaca"]) == (name, "input")
    assert keys.near_miss({"instruction": "q", name: ""}, keys.READ["alpaca"]) is None
    assert keys.near_miss({"instruction": "q", "inputs": "c", "id": 3}, keys.READ["alpaca"]) is None
    assert keys.near_miss({"toolCalls": [1]}, keys.TURN) == ("toolCalls", "tool_calls")
