"""What kind of answers a split holds."""

import pytest

from lockstep.evaluation import answer_kinds
from lockstep.evaluation.answer_kinds import JSON, LABELS, MIXED, SHORT, TEXT

PERSONA = ["臣妾给皇上请安。今日御花园的海棠开得正好。", "本宫乏了，你退下吧！", "Tea, please, and quietly."] * 4
JSON_ROWS = [f'{{"city": "Oslo", "count": {number}}}' for number in range(8)]
SHORT_ROWS = ["北京", "42", "Paris", "Lord Byron", "3.5 kg", "二〇〇八年", "H2O", "yes"]


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ('{"a": 1}', JSON), ("[1, 2]", JSON), ("{broken", SHORT), ("12", SHORT), ("北京", SHORT), ("New York City", SHORT),
        ("It is here.", TEXT), ("臣妾不知。", TEXT), ("嗯。", SHORT), ("你好，我是沈清漪，家父任大理寺少卿", TEXT), ("a\nb", TEXT),
        ("", SHORT), ("{" * 5000, TEXT), ("[" * 100_000, TEXT),
    ],
)  # fmt: skip
def test_a_reference_is_json_a_few_words_or_text(reference: str, kind: str) -> None:
    assert answer_kinds.kind_of(reference) == kind


@pytest.mark.parametrize(
    ("references", "kind"),
    [
        (PERSONA, TEXT),
        (JSON_ROWS, JSON),
        (SHORT_ROWS, SHORT),
        (JSON_ROWS + SHORT_ROWS, SHORT),
        (["good", "bad"] * 5, LABELS),
        (["I am a lady of the court.", "Good night to you."] * 5, TEXT),
        (JSON_ROWS + PERSONA, MIXED),
        ([*PERSONA, "嗯。"], TEXT),  # a few short ones change nothing
    ],
)
def test_the_kind_of_a_split_is_that_of_most_rows(references: list[str], kind: str) -> None:
    assert answer_kinds.kind_of_split(references) == kind
    assert kind in answer_kinds.HEADLINE


def test_exact_match_never_heads_free_text() -> None:
    assert "exact_match" not in answer_kinds.HEADLINE[TEXT] + answer_kinds.HEADLINE[MIXED]


def test_a_mixed_split_is_checked_where_it_can_be() -> None:
    references = JSON_ROWS + PERSONA[:8]
    summary = answer_kinds.summary(references, ["no"] * 16, JSON_ROWS + ["no"] * 8, seed=0)
    assert summary["kind"] == MIXED and summary["rows"] == {JSON: 8, SHORT: 0, TEXT: 8}
    sides = [summary["checked"][side]["exact_match"]["value"] for side in ("base", "tuned")]
    assert sides == [0.0, 1.0]  # of eight rows, not of sixteen
    assert "checked" not in answer_kinds.summary(PERSONA, PERSONA, PERSONA, seed=0)
