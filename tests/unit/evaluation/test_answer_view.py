"""Answers as the page shows them."""

import json
from pathlib import Path

import pytest

from lockstep.evaluation import answer_view
from lockstep.evaluation.answer_view import shown


def test_the_pieces_are_the_text_with_code_set_apart() -> None:
    text = "# Title\nUse `x = 1`, **not** this:\n\n```python\nprint('**no bold**')\n```\nend"
    pieces = shown(text).pieces
    assert "".join(piece for _, piece in pieces) == text
    assert [(kind, piece) for kind, piece in pieces if kind != "plain"] == [
        ("heading", "# Title"), ("code", "`x = 1`"), ("bold", "**not**"), ("fence", "```python\nprint('**no bold**')\n```"),
    ]  # fmt: skip
    assert shown("```\nnever closed").pieces == [("fence", "```\nnever closed")]


def test_only_texts_that_are_alike_are_marked() -> None:
    assert ("right", " Rome") in shown("The city is Rome.", "The city is Oslo.").pieces
    assert ("left", "甄") in shown("臣妾姓沈，名清漪。", "臣妾姓甄，名清漪。").pieces
    assert shown("I do not know that.", "The city is Oslo.").pieces == [("plain", "I do not know that.")]
    assert shown("equal", "equal").pieces == [("plain", "equal")]
    assert shown("", "The city is Oslo.").pieces == []


@pytest.mark.parametrize(
    ("text", "language"), [("你好", "zh"), ("こんにちは、世界", "ja"), ("안녕", "ko"), ("hello", "")]
)
def test_the_language_of_a_text_decides_on_its_glyphs(text: str, language: str) -> None:
    assert shown(text).language == language


def test_long_texts_are_folded_and_very_long_ones_cut() -> None:
    assert not shown("short").is_long and shown("line\n" * 20).is_long
    cut = shown("字" * 5000)
    assert cut.is_long and cut.left_out == 1000 and len(cut.pieces[0][1]) == answer_view.CHARACTERS


def test_rows_of_free_text_say_which_answer_is_closer(tmp_path: Path) -> None:
    rows = [
        {"row": "t:1", "messages": [{"role": "user", "content": "q"}], "wanted": "臣妾给皇上请安",
         "base": {"answer": "不知道"}, "tuned": {"answer": "臣妾给皇上请安了"}},
        {"row": "t:2", "messages": [{"role": "user", "content": "q"}], "wanted": "yes", "base": {"answer": "yes"}, "tuned": {"error": "x"}},
    ]  # fmt: skip
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row["outcome"] for row in answer_view.rows(file, "text")] == ["closer", "lost"]
    first, second = answer_view.rows(file, "json")
    assert first["outcome"] == "neither" and first["closer"] > 50 > 0 > second["closer"]
