import json

from hypothesis import given
from hypothesis import strategies as st

from lockstep.data import conversation_row
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.records import Record
from lockstep.text.json_text import JsonObject

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
MESSAGES = st.builds(
    lambda role, content, extra: (
        {"role": role, "content": content} | {f"x{key}": value for key, value in extra.items()}
    ),
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.text(),
    st.dictionaries(st.text(), VALUES, max_size=2),
)


def row(*messages: dict[str, object], **fields: object) -> ConversationRow:
    return ConversationRow(messages, Record("f", 3, JsonObject([]), "{}"), **fields)  # type: ignore[arg-type]


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.lists(VALUES, max_size=2))
def test_what_a_split_holds_gives_the_row_back(messages: list[dict[str, object]], tools: list[object]) -> None:
    packed, packed_tools = conversation_row.packed(row(*messages, tools=tuple(tools)))
    assert all(set(column) == {"role", "content", "extra"} for column in packed)
    unpacked = conversation_row.unpacked({"messages": packed, "tools": packed_tools})
    assert unpacked == (messages, tools or None)


def test_one_spelling_for_equal_conversations_and_another_for_all_that_changes_what_is_taught() -> None:
    question, answer = {"role": "user", "content": "你"}, {"role": "assistant", "content": "a"}
    first = conversation_row.canonical(row(question, answer))
    assert first == conversation_row.canonical(row({"content": "你", "role": "user"}, answer))
    assert "你" in first and json.loads(first)
    assert first != conversation_row.canonical(row(question, answer, untrained=frozenset({1})))
    assert first != conversation_row.canonical(row(question, answer, tools=({},)))


def test_parts_of_a_row() -> None:
    system, question = {"role": "system", "content": "s"}, {"role": "user", "content": "q"}
    answer, tool = {"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}
    conversation = row(system, question, answer, tool, answer, untrained=frozenset({2}))
    assert (conversation.name, conversation.system, conversation.answers) == ("f:3", "s", [4])
    assert conversation.dialogue == "q\na\na"
    assert row(question, answer).system is None
    changed = conversation_row.with_contents(conversation, ["1", "2", "3", "4", "5"])
    assert [message["content"] for message in changed.messages] == ["1", "2", "3", "4", "5"]
    assert changed.untrained == conversation.untrained
    assert list(conversation_row.strings([{"k": ["a", {"b": 1}]}, ("c",), None])) == ["k", "a", "b", "c"]
