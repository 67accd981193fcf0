from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from lockstep.data import conversation_row, quality_report
from lockstep.data.collator import IGNORE
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.encoding import Sample
from lockstep.data.ledger import Ledger
from lockstep.data.quality_report import Quality
from lockstep.data.records import Record
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject

SPLITS = ("train", "validation", "test")


def report(pairs: list[tuple[str, str, str]], **changes: Any) -> dict[str, Any]:
    """The report of (split, question, answer) rows."""
    ledger, quality = Ledger(SPLITS), Quality(SPLITS, Data(**changes))
    kept: dict[str, list[ConversationRow]] = {split: [] for split in SPLITS}
    for number, (split, question, answer) in enumerate(pairs):
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        row = ConversationRow(messages, Record("f", number + 1, JsonObject([]), "{}"))
        quality.add(row, split, len(kept[split]))
        kept[split].append(row)
        ids = list(range(len(question) + len(answer)))
        ledger.keep(split, [Sample(ids, [IGNORE] * len(ids), row, 1, 2)], [])

    def read(split: str, place: int) -> Mapping[str, Any]:
        row = kept[split][place]
        return {"messages": conversation_row.packed(row)[0], "row": row.name}

    return quality.report(ledger, read)


def test_the_phrase_that_a_role_play_set_repeats_is_found_with_advice() -> None:
    pairs = [("train", f"问题{n}", f"第{n}回，我愿为我这个做生母的尽尽义务，{n * 7919}。") for n in range(30)]
    pairs += [("train", f"问{n}", f"皇上第{n}次驾到，臣妾{n * 31}告退") for n in range(100)]
    figures = report(pairs)
    assert any("做生母的尽尽义务" in phrase["phrase"] for phrase in figures["phrases"])
    assert any("尽尽义务" in line for line in figures["advice"])


def test_longer_phrases_stand_for_the_shorter_ones_inside_them() -> None:
    answers = [f"thank you very much for your order number {n}" for n in range(20)] + [f"other {n}" for n in range(80)]
    assert [phrase["phrase"] for phrase in quality_report.phrases(answers)] == [
        "thank you very much for your order number"
    ]
    assert quality_report.phrases([]) == []


def test_repeated_answers_and_prompts_are_counted() -> None:
    pairs = [("train", f"q{n}", "好的。") for n in range(40)] + [("train", f"w{n}", f"answer {n * 7919}") for n in range(60)]  # fmt: skip
    pairs += [("test", "q1", "something else entirely")]
    figures = report(pairs)
    assert figures["repeated_answers"] == [{"count": 40, "answer": "好的。"}]
    assert figures["held_out_prompts_in_train"] == 1 and figures["prompts_with_several_rows"] == 1
    assert any("40 rows have the same answer “好的。”" in line for line in figures["advice"])
    assert figures["labels"] is None


def test_labels_are_known_and_their_balance_is_judged() -> None:
    pairs = [("train", f"text {n * 7919}", "正面" if n % 20 else "负面") for n in range(200)]
    figures = report(pairs)
    assert figures["labels"] == {"正面": 190, "负面": 10}
    assert any("out of balance (190 rows against 10)" in line for line in figures["advice"])


def test_near_duplicates_between_splits_are_a_leak() -> None:
    text = "今天天气很好，我们一起去公园散步，顺便买点水果回家吃吧"
    pairs = [("train", text, "好"), ("test", text + "！", "好"), ("train", "你是谁？", "本宫沈清漪")]
    figures = report(pairs)["near_duplicates"]
    assert (figures["clusters"], figures["rows"], figures["across_train_and_held_out"]) == (1, 2, 1)
    assert figures["largest"][0]["where"] == ["f:1", "f:2"] and "公园" in figures["largest"][0]["example"]
    assert report(pairs, near_duplicate_similarity=None)["near_duplicates"] is None


@pytest.mark.parametrize(
    ("text", "name"),
    [("你好，世界", "zh"), ("Hello world", "latin"), ("こんにちは世界", "ja"), ("안녕하세요", "ko"), ("Привет", "cyrillic"),
     ("用 Python 写一个快速 sort function", "mixed"), ("42 + 1", "other"), ("我用Python", "zh")],
)  # fmt: skip
def test_languages(text: str, name: str) -> None:
    assert quality_report.language(text) == name


def test_the_histogram_holds_every_sample() -> None:
    bins = quality_report.histogram(Counter({1: 2, 8: 1, 9: 5, 16: 1, 17: 1, 1000: 3}))
    assert sum(entry["samples"] for entry in bins) == 13
    assert bins[0] == {"from": 1, "to": 8, "samples": 3} and bins[1] == {"from": 9, "to": 16, "samples": 6}
    assert bins[-1] == {"from": 513, "to": 1024, "samples": 3}
    assert quality_report.histogram(Counter()) == []
