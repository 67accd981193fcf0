"""Measures of texts, against the reference implementations and figures worked out by hand."""

import math
import random
from collections.abc import Sequence

import pytest
from rouge_score.rouge_scorer import RougeScorer
from support.answer_pairs import KINDS, pairs

from lockstep.evaluation import scores
from lockstep.text import normalise


class OurWords:
    """Our words, in the form in which rouge-score takes a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return normalise.words(text)


@pytest.mark.parametrize("kind", KINDS)
def test_rouge_l_is_rouge_scores_with_our_words(kind: str) -> None:
    predictions, references = pairs(kind)
    scorer = RougeScorer(["rougeL"], tokenizer=OurWords())
    expected = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
    figure = scores.score_answers(predictions, references)["rouge_l"]
    assert figure.row_values == pytest.approx(expected, abs=1e-6)
    assert figure.value == pytest.approx(sum(expected) / len(expected), abs=1e-6)


def test_for_english_our_words_are_rouge_scores_own() -> None:
    scorer = RougeScorer(["rougeL"])
    for prediction, reference in zip(*pairs("en"), strict=True):
        expected = scorer.score(reference, prediction)["rougeL"].fmeasure
        assert scores.rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-6)


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Longest common subsequence by trying all choices: slow, and obviously right."""
    for size in range(min(len(left), len(right)), 0, -1):
        for mask in range(1 << len(left)):
            if mask.bit_count() == size:
                rest = iter(right)
                if all(token in rest for place, token in enumerate(left) if mask >> place & 1):
                    return size
    return 0


def test_rouge_l_of_chinese_by_hand() -> None:
    # 我们 | 喜欢 | 北京大学 against 我们 | 都 | 喜欢 | 唱歌: 2 of 3 and of 4 words in common
    assert normalise.words("我们喜欢北京大学。") == ["我们", "喜欢", "北京大学"]
    assert normalise.words("我们，都喜欢唱歌！") == ["我们", "都", "喜欢", "唱歌"]
    assert scores.rouge_l("我们喜欢北京大学。", "我们，都喜欢唱歌！") == pytest.approx(
        2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    )
    chance = random.Random(3)
    for _ in range(60):
        left, right = (chance.choices("今天很好吗", k=chance.randrange(0, 9)) for _ in range(2))
        assert normalise.common_length(left, right) == longest_common(left, right)


def test_normalised_texts() -> None:
    same = ["Paris", " paris. ", "“Ｐａｒｉｓ”", "**Paris**", "（PARIS）。", "\tparis\n"]
    assert {normalise.normalise(text) for text in same} == {"paris"}
    assert normalise.normalise("４２ 公里。") == "42 公里"
    apart = ["5", "-5", "5%", "c#", "c", "?", "!", "", "new  york", "newyork"]
    assert len({normalise.normalise(text) for text in apart}) == len(apart)
    figures = scores.score_answers(["Paris", "paris."], ["Paris", "Paris"])
    assert (figures["exact_match"].value, figures["exact_match_normalised"].value) == (0.5, 1.0)


def test_token_f1_shares_characters_of_chinese_and_words_of_english() -> None:
    assert scores.token_f1("北京", "北京大学") == pytest.approx(2 * 2 / 6)
    assert scores.token_f1("The cat sat.", "a cat") == pytest.approx(2 * 1 / 5)
    assert scores.token_f1("the the the", "the") == pytest.approx(2 * 1 / 4)
    assert scores.token_f1("答案是Ｐａｒｉｓ", "paris") == pytest.approx(2 * 1 / 5)


def test_token_f1_without_a_token_is_equality() -> None:
    assert scores.token_f1("", "") == scores.token_f1("?", "?") == 1
    assert scores.token_f1("", "a") == scores.token_f1("?", "!") == 0


def test_labels_and_fields_are_among_the_scores_where_the_references_allow_it() -> None:
    labels = scores.score_answers(["a", "b"] * 5, ["a", "b"] * 5)
    assert labels["accuracy"].value == 1 and "json_valid" not in labels
    fields = scores.score_answers(['{"a": 1}'], ['{"a": 1}'])
    assert fields["json_valid"].value == 1 and "accuracy" not in fields


def test_distinct_by_hand() -> None:
    figure = scores.variety(["a b a b", "a b c", ""])["distinct_2"]
    assert figure.value == pytest.approx(3 / 5)  # ab ba ab + ab bc
    assert figure.row_values[:2] == pytest.approx([2 / 3, 1]) and math.isnan(figure.row_values[2])
    assert scores.variety(["一二", "一二"])["distinct_2"].value == 0.5  # the same answer to all is not diverse
    assert scores.distinct([list("abab")], size=3).value == 1
    assert scores.variety(["", "a"])["distinct_2"].value is None


def test_repetition_and_loops() -> None:
    assert normalise.repeated(normalise.units("a b c d a b c d")) == pytest.approx(1 / 5)
    assert normalise.repeated(normalise.units("我愿为你尽尽义务，我愿为他尽尽义务")) == pytest.approx(1 / 14)
    assert normalise.repeated(normalise.units("too short here")) == 0
    assert normalise.longest_loop(normalise.units("好的。" * 5 + "完")) == 15
    assert normalise.longest_loop(normalise.units("ab ab cd")) == 0 and normalise.longest_loop(list("xababab")) == 6
    prose = "The library opens at nine. Visitors may borrow five books for three weeks, and renew them twice."
    broken = scores.variety([prose, "是的是的是的是的是的是的", "!" * 500, "ha" * 400])
    assert broken["loop_rate"].value == 0.75
    assert broken["repetition_rate"].row_values == pytest.approx([0, 1 - 2 / 9, 1 - 1 / 497, 1 - 2 / 797])


AWKWARD = [
    "", " \n\t ", "哈" * 10_000, "ha" * 5_000, "a b c " * 3_000, "🙂" * 10_000, "👩‍👩‍👧‍👦🇨🇳", "１２３，４５６", "。。。", "\u200b\ufeff",
    "\0\x1b[0m", "mixed 中文 and English 混合", "ทดสอบ हिन्दी العربية", "𠀀𠀁", "e\u0301", "a" * 10_000,
]  # fmt: skip


def test_awkward_texts_have_sensible_scores() -> None:
    texts = [(text, other) for text in AWKWARD for other in (text, "", AWKWARD[2], "mixed 中文 and English 混合")]
    predictions, references = [prediction for prediction, _ in texts], [reference for _, reference in texts]
    rows = len(texts)
    figures = scores.score_answers(
        predictions,
        references,
        finish_reasons=["stop", "length", None, "abort"] * (rows // 4),
        output_tokens=[7] * rows,
        seconds=[0.5] * rows,
        nats=[3.5] * rows,
        tokens=[7] * rows,
    )
    for name, figure in figures.items():
        assert figure.value is not None and math.isfinite(figure.value), name
        assert figure.bounds is None or figure.bounds[0] <= figure.value <= figure.bounds[1], name
        assert len(figure.statistics) == rows == len(figure.row_values), name
    same = [row for row, (text, other) in enumerate(texts) if text == other and normalise.words(text)]
    for name in ("exact_match", "exact_match_normalised", "token_f1", "rouge_l"):
        assert figures[name].row_values[same] == pytest.approx(1), name
    assert figures["stop_rate"].value == 0.25
    assert figures["latency"].value == 0.5 and figures["output_tokens"].value == 7
    assert figures["perplexity"].value == pytest.approx(math.exp(0.5))
    assert scores.score_answers(["１２３"], ["123"])["exact_match_normalised"].value == 1


def test_no_rows_at_all() -> None:
    figures = scores.score_answers([], [], finish_reasons=[], output_tokens=[], seconds=[], nats=[], tokens=[])
    assert {figure.value for figure in figures.values()} == {None}
    keys = {"perplexity", "exact_match", "rouge_l", "bleu", "chrf", "distinct_2", "repetition_rate", "stop_rate"}
    assert keys <= figures.keys()
    with pytest.raises(ValueError):
        scores.score_answers(["a"], [])
