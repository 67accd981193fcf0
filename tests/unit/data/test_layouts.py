import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.data import conversation_row, layouts
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.records import Record, Reject
from lockstep.settings.schema import Data
from lockstep.text import json_text


def parse(text: str | dict[str, Any], **settings: Any) -> ConversationRow | Reject:
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return layouts.parse(Record("f", 3, json_text.loads(text), text), Data(**settings))


def dialogue(text: str | dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    row = parse(text, **settings)
    assert isinstance(row, ConversationRow), row
    return [(message["role"], message["content"]) for message in row.messages]


def turns(*contents: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text, **more} for n, text in enumerate(contents)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"text"', "not_an_object"),
        ("null", "not_an_object"),
        ('{"output": "b"}', "missing_instruction"),
        ('{"instruction": "a"}', "missing_output"),
        ('{"instruction": 1, "output": "b"}', "wrong_type"),
        ('{"instruction": "a", "output": NaN}', "wrong_type"),
        ('{"instruction": "a", "output": null}', "wrong_type"),
        ('{"instruction": "a", "input": ["x"], "output": "b"}', "wrong_type"),
        ('{"instruction": "a", "output": "b", "output": "c"}', "duplicate_key"),
        ('{"instruction": "a\\u0000", "output": "b"}', "nul_character"),
        ('{"instruction": "a", "output": "\\ud800"}', "lone_surrogate"),
        ('{"instruction": " ", "input": "\\n", "output": "b"}', "empty_prompt"),
        ('{"instruction": "a", "output": " \\n"}', "empty_answer"),
        ('{"instruction": "a", "output": "b", "history": [["q"]]}', "wrong_type"),
        ('{"instruction": "a", "output": "b", "history": [["q", ""]]}', "empty_answer"),
        ('{"instruction": "a", "output": "b", "images": ["x.png"]}', "not_text"),
        ('{"prompt": "a", "completion": 1}', "wrong_type"),
        ('{"messages": "x"}', "bad_json"),
        ('{"messages": []}', "no_last_answer"),
        ('{"messages": [1]}', "wrong_type"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no_last_answer"),
        ('{"messages": [{"role": "wizard", "content": "a"}]}', "unknown_role"),
        ('{"messages": [{"role": "user"}]}', "missing_content"),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]}', "not_text"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "bad_turn_order"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]}', "bad_turn_order"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "duplicate_key"),
        ('{"conversations": [{"from": "gpt", "value": "a"}]}', "bad_turn_order"),
        ('{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{"}]}', "bad_tool_call"),
        ('{"instruction": "a", "output": "b", "tools": "["}', "bad_tools"),
        ('{"instruction": "a", "output": "b", "tools": [{"name": "\\u0000"}]}', "nul_character"),
    ],
)  # fmt: skip
def test_each_record_that_is_no_row_has_its_reason(text: str, reason: str) -> None:
    outcome = parse(text)
    assert isinstance(outcome, Reject) and (outcome.reason, outcome.line, outcome.text) == (reason, 3, text)


def test_text_arrives_as_it_was() -> None:
    text = "  2024-01-01 \u3000“引号”，\t🙂\u200b\r\n "
    assert dialogue({"instruction": text, "input": "", "output": text, "id": 7}) == [
        ("user", text),
        ("assistant", text),
    ]


def test_four_layouts_of_one_conversation() -> None:
    spoken = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    alpaca = {"instruction": "q2", "input": "", "output": "a2", "history": [["q1", "a1"]], "system": "s"}
    messages = [{"role": role, "content": content} for role, content in spoken]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[role], "value": content} for role, content in spoken]
    assert dialogue(alpaca) == spoken
    assert dialogue({"messages": messages}) == spoken
    assert dialogue({"conversations": sharegpt}) == spoken
    assert dialogue({"conversations": sharegpt[1:], "system": "s"}) == spoken
    assert dialogue({"prompt": messages[:3] + messages[3:4], "completion": messages[4:]}) == spoken
    assert dialogue({"prompt": "q", "completion": " a"}) == [("user", "q"), ("assistant", " a")]
    keys = {
        conversation_row.canonical(row)
        for row in map(parse, (alpaca, {"messages": messages}))
        if isinstance(row, ConversationRow)
    }
    assert len(keys) == 1


def test_answers_that_are_only_context_are_not_trained() -> None:
    weighted = parse({"messages": [*turns("q", "a"), *turns("r", "b")][:1] + turns("q", "a", weight=0)[1:] + turns("r", "b")})  # fmt: skip
    assert isinstance(weighted, ConversationRow) and weighted.answers == [3]
    trl = parse({"prompt": turns("q", "a", "r"), "completion": [{"role": "assistant", "content": "b"}]})
    assert isinstance(trl, ConversationRow) and trl.answers == [3]
    nothing = parse({"messages": turns("q", "a", weight=0)})
    assert isinstance(nothing, Reject) and nothing.reason == "nothing_to_train"


def test_columns_of_other_names() -> None:
    names = ("instruction=问题", "output=答案")
    assert dialogue({"问题": "q", "答案": "a", "output": 3}, columns=names) == [("user", "q"), ("assistant", "a")]
    dialog = {"dialog": [{"speaker": "human", "text": "q"}, {"speaker": "bot", "text": "a"}]}
    mapped = ("conversations=dialog", "from=speaker", "value=text")
    assert dialogue(dialog, columns=mapped) == [("user", "q"), ("assistant", "a")]


def test_one_part_of_text_is_text() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]
    assert dialogue({"messages": parts}) == [("user", "q"), ("assistant", "a")]


def test_turns_of_tables_have_other_names_too() -> None:
    dialog = {"dialog": [{"speaker": "human", "text": "q"}, {"speaker": "bot", "text": "a"}]}
    mapped = Data(columns=("conversations=dialog", "from=speaker", "value=text"))
    row = layouts.parse(
        Record("f", 1, json_text.JsonObject(list(dialog.items()))), mapped
    )  # plain dicts, as Parquet gives
    assert isinstance(row, ConversationRow) and [m["content"] for m in row.messages] == ["q", "a"]


def test_tables_of_two_layouts_have_the_columns_of_both() -> None:
    both = {"instruction": None, "output": None, "prompt": "q", "completion": "a", "messages": None}
    for row in (both, both | {"instruction": "", "output": ""}):
        assert dialogue(row) == [("user", "q"), ("assistant", "a")]
    turn = {"role": None, "content": None, "from": "human", "value": "q"}
    turns_of_both = [turn, turn | {"from": None, "value": None, "role": "assistant", "content": "a"}]
    row = layouts.parse(Record("f", 1, json_text.JsonObject([("messages", turns_of_both)])), Data())
    assert isinstance(row, ConversationRow) and [m["content"] for m in row.messages] == ["q", "a"]


def test_a_file_s_own_names_are_read_and_counted() -> None:
    names = {"query": "instruction", "response": "output", "Input": "input"}
    record = {"query": "q", "response": "a", "Input": "c", "id": 3, "empty": [], "note": None}
    row = layouts.parse(Record("f", 1, json_text.loads(json.dumps(record))), Data(), names)
    assert isinstance(row, ConversationRow) and row.messages[0]["content"].startswith("q")
    assert row.remarks.renamed == ("query → instruction", "response → output", "Input → input")
    assert row.remarks.ignored == ("id",)
    wrong = layouts.parse(Record("f", 1, json_text.loads(json.dumps(record | {"response": 3}))), Data(), names)
    assert isinstance(wrong, Reject) and (wrong.reason, wrong.detail) == ("wrong_type", "response: int")
    for twice in ({"output": "b"}, {"instruction": "p"}, {"input": "d"}):
        row = layouts.parse(Record("f", 1, json_text.loads(json.dumps(record | twice))), Data(), names)
        assert isinstance(row, Reject) and row.reason == "unclear_key" and row.detail.startswith("both ")


def test_fields_that_nothing_reads_are_named_with_those_of_turns() -> None:
    row = parse({"messages": turns("q", "a", ts=1, id=None), "source": "web", "label": "x", "images": []})
    assert isinstance(row, ConversationRow) and row.remarks.ignored == ("source", "label", "messages[].ts")
    assert row.remarks.noted == {}


def test_marks_of_questions_cannot_be_obeyed_where_all_is_trained() -> None:
    marked = {"messages": [turns("q")[0] | {"loss": False}, turns("q", "a")[1]]}
    assert dialogue(marked) == [("user", "q"), ("assistant", "a")]
    row = parse(marked, supervise="prompt_too")
    assert isinstance(row, Reject) and row.reason == "unclear_mark"


def test_a_reject_says_what_its_keys_tell() -> None:
    for record, reason, detail in (
        ({"instruction ": "q", "output": "a"}, "missing_instruction", "'instruction ' is not instruction"),
        ({"instruction": "q", "in\u200bput": "c", "output": "a"}, "unclear_key", "'in\\u200bput' is not input"),
        ({"instruction": "q", "输入 ": "c", "output": "a"}, "unclear_key", "'输入 ' is not input"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference_pair", "chosen and rejected"),
        ({"input": {"messages": []}, "preferred_output": [1], "non_preferred_output": [2]}, "preference_pair", "preferred_output and"),
        ({"messages": [{"speaker": "a", "text": "b"}]}, "unknown_role", "whose keys are speaker, text"),
        ({"messages": [{"role": "user", "Content": "q"}]}, "missing_content", "'Content' is not content in turn 1"),
    ):  # fmt: skip
        row = parse(record)
        assert isinstance(row, Reject) and row.reason == reason and detail in row.detail, row
        assert row.keys == tuple(record)


def test_turns_that_are_calls_have_two_names() -> None:
    call = json.dumps({"name": "f", "arguments": {"x": 1}})
    for role, answer in (("function_call", "observation"), ("tool_call", "tool_response")):
        talk = [{"role": "user", "content": "q"}, {"role": role, "content": call}, {"role": answer, "content": "r"}]
        row = parse({"messages": [*talk, {"role": "assistant", "content": "a"}], "tools": [{"name": "f"}]})
        assert isinstance(row, ConversationRow), row
        assert [message["role"] for message in row.messages] == ["user", "assistant", "tool", "assistant"]
        assert row.messages[1]["tool_calls"][0]["function"] == {"arguments": {"x": 1}, "name": "f"}


def test_a_layout_can_be_demanded() -> None:
    both = {"instruction": "q", "output": "a", "messages": turns("x", "y")}
    assert dialogue(both) == [("user", "x"), ("assistant", "y")]
    assert dialogue(both, format="alpaca") == [("user", "q"), ("assistant", "a")]


def test_tables_hold_lists_as_json_text() -> None:
    assert dialogue({"messages": json.dumps(turns("q", "a"))}) == [("user", "q"), ("assistant", "a")]
    assert dialogue({"instruction": "q", "input": "", "output": "a", "history": ""}) == [
        ("user", "q"),
        ("assistant", "a"),
    ]


def test_tool_calls_come_in_openai_form() -> None:
    call = {"name": "weather", "arguments": {"city": "北京"}}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([{"name": "weather", "parameters": {}}]),
    }
    row = parse(sharegpt)
    assert isinstance(row, ConversationRow) and row.answers == [1, 3]
    assert row.tools == ({"type": "function", "function": {"name": "weather", "description": None, "parameters": {}}},)
    (parsed_call,) = row.messages[1]["tool_calls"]
    assert parsed_call["function"] == call and row.messages[2]["tool_call_id"] == parsed_call["id"]
    openai = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "x1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(call["arguments"])}}]},
            {"role": "tool", "tool_call_id": "x1", "content": "3"},
            {"role": "assistant", "content": "a"},
        ]
    }  # fmt: skip
    row = parse(openai)
    assert isinstance(row, ConversationRow)
    assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [{"id": "x1", "type": "function", "function": call}]}  # fmt: skip
    messages, tools = conversation_row.packed(row)
    assert conversation_row.unpacked({"messages": messages, "tools": tools}) == (list(row.messages), None)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "weight", "instruction",
         "output", "history", "messages", "conversations", "prompt", "completion", "tools", "system"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_any_json_is_a_row_or_a_reject_that_can_be_written(value: Any) -> None:
    outcome = parse(json.dumps(value))
    if isinstance(outcome, Reject):
        json.dumps(outcome.text).encode()
    else:
        assert outcome.answers and outcome.messages[-1]["role"] == "assistant"


def test_a_developer_message_is_the_system_message_and_is_counted() -> None:
    as_developer, as_system = (
        parse({"messages": [{"role": role, "content": "Be brief."}, *turns("a", "b")]})
        for role in ("developer", "system")
    )
    assert isinstance(as_developer, ConversationRow) and isinstance(as_system, ConversationRow)
    assert as_developer.messages == as_system.messages
    assert as_developer.remarks.renamed == ("role developer → system",) and not as_system.remarks.renamed
