import json
from pathlib import Path

import pytest

from lockstep.data import cleaning
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.records import Record
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject
from lockstep.text.unicode import drop_controls

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def row(question: str, answer: str) -> ConversationRow:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return ConversationRow(messages, Record("f", 1, JsonObject([]), "{}"))


CHINESE = "“引号”，（括号）！ＡＢＣ…… 他说：‘好’。\u3000全角空格"


def test_unicode_repair_mends_what_was_decoded_wrongly_and_leaves_chinese_punctuation_alone() -> None:
    assert cleaning.repair_unicode("schÃ¶n â€œhiâ€\x9d") == "schön “hi”"
    for text in (CHINESE, "ﬁ &amp; l’é \u2028x\r\n", "cafe\u0301 Ａ１", "👩‍👩‍👧‍👦"):
        assert cleaning.repair_unicode(text) == text


def test_each_step_changes_only_what_it_is_named_for() -> None:
    assert drop_controls("a\x00b\tc\nd\x1b[0m\ufeff\x85") == "ab\tc\nd[0m"
    assert cleaning.tidy_whitespace("  a \r\nb\t\n\n\n\nc\u3000\n") == "  a\nb\n\nc"
    assert cleaning.tidy_whitespace(CHINESE) == CHINESE


def test_a_million_spaces_take_no_time() -> None:
    text = " " * 10**6
    assert cleaning.tidy_whitespace(text + "x" + text + "\r\n\n\n\ty \u3000\n") == text + "x\n\n\ty"


def test_changes_are_recorded_by_step_and_message_and_nothing_changes_unasked() -> None:
    original = row("a \n", "b\x07 ")
    assert cleaning.clean(original, ()) == (original, [])
    cleaned, changes = cleaning.clean(original, ("whitespace", "control_characters"))
    assert [message["content"] for message in cleaned.messages] == ["a", "b"]
    assert [(c.step, c.message, c.before, c.after) for c in changes] == [
        ("control_characters", 1, "b\x07 ", "b "),
        ("whitespace", 0, "a \n", "a"),
        ("whitespace", 1, "b ", "b"),
    ]


@pytest.mark.parametrize(
    "text",
    ["abc\ufffd", "ä½\xa0å¥½ï¼Œæˆ‘æ˜¯", "今天天气很好，我们一起去公园散步。".encode().decode("gbk", "ignore"), "?????? ?????", "好锟斤拷好"],
)  # fmt: skip
def test_garbled_answers_are_known(text: str) -> None:
    assert list(cleaning.garbled(text))
    assert cleaning.fault(row("q", text), Data()) is not None
    assert cleaning.fault(row("q", text), Data(drop=())) is None


@pytest.mark.parametrize(
    "text", [CHINESE, "Really????", "😀🎉", "{}", "naïve café", "¿Qué? Ça va", "«так»", "ÄÖÜ", "\\x41"]
)
def test_sound_answers_are_not(text: str) -> None:
    assert not list(cleaning.garbled(text))


@pytest.mark.skipif(not SHARED.exists(), reason="the real instruction data is not at hand")
def test_real_answers_are_not_garbled() -> None:
    for file in sorted(SHARED.glob("*.json")):
        for alpaca in json.loads(file.read_text(encoding="utf-8")):
            assert not list(cleaning.garbled(alpaca["output"])), alpaca["output"]


def test_length_bounds_and_what_cleaning_left_empty() -> None:
    assert cleaning.fault(row("q", "ab"), Data(min_answer_chars=3)) == ("too_short", "2 characters")
    assert cleaning.fault(row("q", "abcd"), Data(max_answer_chars=3)) == ("answer_too_long", "4 characters")
    assert cleaning.fault(row("q", "abc"), Data(min_answer_chars=3, max_answer_chars=3)) is None
    emptied, _ = cleaning.clean(row("q", "\x07"), ("control_characters",))
    assert cleaning.fault(emptied, Data()) == ("empty_answer", "after cleaning")
