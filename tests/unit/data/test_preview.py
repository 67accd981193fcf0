import json
import re

import pytest
from support import tiny

from lockstep.data import preview
from lockstep.data.cleaning import Change
from lockstep.data.collator import IGNORE
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.encoding import Sampler
from lockstep.data.preview import Picks
from lockstep.data.records import Record, Reject
from lockstep.prompts.template import Template
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject

CHAT = Template(tiny.tokenizer(), tiny.CHATML)


def row(number: int, answer: str) -> ConversationRow:
    messages = ({"role": "user", "content": f"你是谁？{number}"}, {"role": "assistant", "content": answer})
    return ConversationRow(messages, Record("f", number, JsonObject([]), "{}"))


def shown(picks: Picks) -> list[dict]:  # type: ignore[type-arg]
    quality = {"advice": []}
    page = preview.page(picks, {"files": {}, "splits": {}}, quality, CHAT)
    assert len(page.encode()) < 5_000_000
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, flags=re.S)
    assert match
    return json.loads(match[1])["rows"]  # type: ignore[no-any-return]


def test_spans_hold_the_whole_text_and_what_each_token_is() -> None:
    (example,) = Sampler(CHAT, Data()).samples([row(1, "本宫🙂")])[0]  # type: ignore[misc]
    spans = list(preview.token_spans(example.input_ids, example.labels, CHAT))
    assert (
        "".join(text for _, text in spans)
        == "<|im_start|>user\n你是谁？1<|im_end|>\n<|im_start|>assistant\n本宫🙂<|im_end|>"
    )
    assert "".join(text for kind, text in spans if kind == "answer") == "本宫🙂"
    assert [text for kind, text in spans if kind == "end"] == ["<|im_end|>"]
    assert [text for kind, text in spans if kind == "control"] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_every_reason_and_kind_is_on_the_page_and_it_stays_small() -> None:
    picks = Picks()
    sampler = Sampler(CHAT, Data(max_length=100_000))
    for number in range(700):
        size = 10_000 if number % 100 == 0 else 1 + number % 300
        (example,) = sampler.samples([row(number, "a " * size)])[0]  # type: ignore[misc]
        changes = [Change("whitespace", 1, "x", "y")] if number == 5 else []
        picks.keep(example, "train" if number % 5 else "test", 1, changes)
    for number in range(3000):
        picks.reject(Reject("f", number, f"reason{number % 20}", "", "x" * 10_000))
    picks.reject(Reject("f", 9999, "rare", "why </script><!-- so", "</script><script>alert(1)</script>"))
    rows = shown(picks)
    assert len(rows) <= 500
    kinds = {kind for entry in rows for kind in entry["kinds"]}
    assert {f"reason{number}" for number in range(20)} | {"rare", "changed: whitespace"} <= kinds
    assert {entry["split"] for entry in rows} == {"train", "test", "dropped"}
    rare = next(entry for entry in rows if entry["kinds"] == ["rare"])
    assert rare["text"] == "</script><script>alert(1)</script>"
    long = next(entry for entry in rows if entry.get("tokens", 0) > 5000)
    assert any(span[0] == "gap" for span in long["spans"])


def test_markup_does_not_make_the_page_too_large() -> None:
    picks = Picks()
    for number in range(3000):
        picks.reject(Reject("f", number, f"reason{number % 20}", "", "<" * 3000))
    assert len(shown(picks)) < 500


def test_every_part_of_a_conversation_is_shown_once() -> None:
    picks = Picks()
    for part in range(3):
        (example,) = Sampler(CHAT, Data()).samples([row(part, f"part {part}")])[0]  # type: ignore[misc]
        picks.keep(example, "train", 3, [])
    rows = shown(picks)
    assert len(rows) == 3 and all("one sample a turn" in entry["kinds"] for entry in rows)


def test_the_same_data_gives_the_same_page() -> None:
    def page() -> str:
        picks = Picks()
        for number in range(200):
            picks.reject(Reject("f", number, "blank", "", ""))
        return preview.page(picks, {}, {}, CHAT)

    assert page() == page()


def test_labels_decide_the_kind_not_the_text() -> None:
    ids = CHAT.encode(["a<|im_end|>"])[0]
    assert [kind for kind, _ in preview.token_spans(ids, [IGNORE] * len(ids), CHAT)] == ["prompt", "control"]
    assert [kind for kind, _ in preview.token_spans(ids, ids, CHAT)] == ["answer", "end"]


def test_the_page_is_in_the_readers_language(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = {"advice": ["3 rows are few: expect the tone to be learned sooner than facts or formats"]}

    def page() -> str:
        return preview.page(Picks(), {"files": {}, "splits": {}}, quality, CHAT)

    assert '<html lang="en">' in page() and "<h1>What will be trained</h1>" in page() and "3 rows are few" in page()
    monkeypatch.setenv("LANGUAGE", "zh")
    assert '<html lang="zh-CN">' in page() and "<h1>将要训练的内容</h1>" in page() and "只有 3 行" in page()
    assert quality["advice"][0].startswith("3 rows")  # quality.json stays English
