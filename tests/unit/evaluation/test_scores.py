"""Measures against the reference implementations, called directly, and against figures worked out by hand."""

import json
import math
import random
import re
from collections.abc import Sequence

import numpy
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from lockstep.evaluation import bleu_chrf, json_answers, label_answers, scores
from lockstep.text import normalise

WORDS = re.findall(r"\S+", "the cat sat on a mat while it's raining, and 3.5 dogs (two of them) ran away. Good-bye!")
CHINESE = list("今天天气很好，我们一起去公园散步；顺便买点水果回家吃吧。北京大学的学生喜欢唱歌")


class OurWords:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return normalise.words(text)


def pairs(kind: str, rows: int = 60) -> tuple[list[str], list[str]]:
    """Predictions and references: the reference with words left out, changed and added; some are empty."""
    chance = random.Random(kind)
    predictions, references = [], []
    for _ in range(rows):
        language = chance.choice(["zh", "en"]) if kind == "mixed" else kind
        pool, glue = (CHINESE, "") if language == "zh" else (WORDS, " ")
        wanted = chance.choices(pool, k=chance.randrange(1, 40))
        if kind == "mixed" and chance.random() < 0.3:
            wanted += [" ", "iPhone", " 15 ", "🙂"]
        said = [chance.choice(pool) if chance.random() < 0.2 else word for word in wanted if chance.random() > 0.2]
        predictions.append(glue.join(said))
        references.append(glue.join(wanted))
    return ["", "   ", *predictions], ["a reference" if kind == "en" else "参考", "x", *references]


KINDS = ["en", "zh", "mixed"]


@pytest.mark.parametrize("kind", KINDS)
def test_bleu_and_chrf_are_sacrebleus(kind: str) -> None:
    predictions, references = pairs(kind)
    tokenize = "13a" if kind == "en" else "zh"
    ours = bleu_chrf.bleu(predictions, references)
    metric = sacrebleu.BLEU(tokenize=tokenize)
    assert ours.value == pytest.approx(metric.corpus_score(predictions, [references]).score, abs=1e-6)
    assert ours.value is not None and ours.value > 5
    assert ours.signature == str(metric.get_signature()) and f"tok:{tokenize}" in ours.signature
    sentence = sacrebleu.BLEU(tokenize=tokenize, effective_order=True)
    one_by_one = [
        sentence.sentence_score(*pair).score for pair in zip(predictions, [[r] for r in references], strict=True)
    ]
    assert ours.values == pytest.approx(one_by_one, abs=1e-6)

    ours, metric = bleu_chrf.chrf(predictions, references), sacrebleu.CHRF()
    assert ours.value == pytest.approx(metric.corpus_score(predictions, [references]).score, abs=1e-6)
    assert ours.signature == str(metric.get_signature())
    one_by_one = [
        metric.sentence_score(*pair).score for pair in zip(predictions, [[r] for r in references], strict=True)
    ]
    assert ours.values == pytest.approx(one_by_one, abs=1e-6)


def test_bleu_of_any_choice_of_rows_is_sacrebleus_of_these_rows() -> None:
    predictions, references = pairs("zh", 12)
    ours, metric = bleu_chrf.bleu(predictions, references), sacrebleu.BLEU(tokenize="zh")
    chars, char_metric = bleu_chrf.chrf(predictions, references), sacrebleu.CHRF()
    for seed in range(40):  # a few rows at a time: orders without a match, without an n-gram at all, and only blanks
        chosen = numpy.random.default_rng(seed).integers(0, len(references), 1 + seed % 4)
        said, wanted = [predictions[c] for c in chosen], [references[c] for c in chosen]
        found = bleu_chrf.bleu_of(ours.rows[chosen].sum(axis=0)), bleu_chrf.chrf_of(chars.rows[chosen].sum(axis=0))
        assert found[0] == pytest.approx(metric.corpus_score(said, [wanted]).score, abs=1e-6)
        assert found[1] == pytest.approx(char_metric.corpus_score(said, [wanted]).score, abs=1e-6)


def test_which_tokenizer_bleu_takes() -> None:
    assert bleu_chrf.tokenization(["a cat", "naïve £5"]) == "13a"
    assert bleu_chrf.tokenization(["a cat", "一只猫"]) == "zh"
    assert bleu_chrf.tokenization(["猫がいます", "犬もいる"]) == "char"
    english = pairs("en")
    both = [*english[0], "猫"], [*english[1], "一只猫"]
    alone = sacrebleu.BLEU(tokenize="13a", effective_order=True)
    together = bleu_chrf.bleu(*both).values[:-1]  # `zh` leaves English rows what 13a makes of them
    assert together == pytest.approx(
        [alone.sentence_score(s, [w]).score for s, w in zip(*english, strict=True)], abs=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rouge_l_is_rouge_scores_with_our_words(kind: str) -> None:
    predictions, references = pairs(kind)
    scorer = RougeScorer(["rougeL"], tokenizer=OurWords())
    expected = [scorer.score(w, s)["rougeL"].fmeasure for s, w in zip(predictions, references, strict=True)]
    found = scores.measure(predictions, references)["rouge_l"]
    assert found.values == pytest.approx(expected, abs=1e-6)
    assert found.value == pytest.approx(sum(expected) / len(expected), abs=1e-6)


def test_for_english_our_words_are_rouge_scores_own() -> None:
    scorer = RougeScorer(["rougeL"])
    for said, wanted in zip(*pairs("en"), strict=True):
        assert scores.rouge_l(said, wanted) == pytest.approx(scorer.score(wanted, said)["rougeL"].fmeasure, abs=1e-6)


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """Longest common subsequence by trying all choices: slow, and obviously right."""
    for size in range(min(len(one), len(other)), 0, -1):
        for mask in range(1 << len(one)):
            if mask.bit_count() == size:
                rest = iter(other)
                if all(token in rest for place, token in enumerate(one) if mask >> place & 1):
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
        one, other = (chance.choices("今天很好吗", k=chance.randrange(0, 9)) for _ in range(2))
        assert normalise.common_length(one, other) == common(one, other)


def test_normalised_texts() -> None:
    same = ["Paris", " paris. ", "“Ｐａｒｉｓ”", "**Paris**", "（PARIS）。", "\tparis\n"]
    assert {normalise.normalise(text) for text in same} == {"paris"}
    assert normalise.normalise("４２ 公里。") == "42 公里"
    apart = ["5", "-5", "5%", "c#", "c", "?", "!", "", "new  york", "newyork"]
    assert len({normalise.normalise(text) for text in apart}) == len(apart)
    found = scores.measure(["Paris", "paris."], ["Paris", "Paris"])
    assert (found["exact_match"].value, found["exact_match_normalised"].value) == (0.5, 1.0)


def test_token_f1_shares_characters_of_chinese_and_words_of_english() -> None:
    assert scores.token_f1("北京", "北京大学") == pytest.approx(2 * 2 / 6)
    assert scores.token_f1("The cat sat.", "a cat") == pytest.approx(2 * 1 / 5)
    assert scores.token_f1("the the the", "the") == pytest.approx(2 * 1 / 4)
    assert scores.token_f1("答案是Ｐａｒｉｓ", "paris") == pytest.approx(2 * 1 / 5)
    assert (
        scores.token_f1("", ""),
        scores.token_f1("", "a"),
        scores.token_f1("?", "?"),
        scores.token_f1("?", "!"),
    ) == (1, 0, 1, 0)


def test_labels_are_few_short_and_come_again() -> None:
    wanted = ["Positive", "negative", "neutral", "negative", "positive"] * 4
    assert label_answers.labels(wanted) == ["negative", "neutral", "positive"]
    assert label_answers.labels(wanted[:14]) == []  # under five rows a label
    assert label_answers.labels(["yes"] * 40) == [] and label_answers.labels(["a", ""] * 10) == []
    assert label_answers.labels(["x" * 41, "y"] * 10) == [] and label_answers.labels([str(n) for n in range(100)]) == []


def test_accuracy_and_f1_by_hand() -> None:
    wanted = ["a"] * 6 + ["b"] * 4
    said = ["A.", "a", "a", "b", "none of them", "", "b", "b", "a", "b"]
    found = scores.measure(said, wanted)
    # a: 3 hits, 4 said, 6 wanted → 6/10; b: 3 hits, 4 said, 4 wanted → 6/8
    assert found["accuracy"].value == pytest.approx(0.6) and found["accuracy"].proportion
    assert found["macro_f1"].value == pytest.approx((0.6 + 0.75) / 2)
    assert found["micro_f1"].value == pytest.approx(2 * 6 / (8 + 10))
    assert "accuracy" not in scores.measure(["one", "two"], ["a long answer", "another"])


def test_fields_of_json_answers() -> None:
    wanted = '{"name": "李明", "items": [{"sku": "A", "n": 2}, {"sku": "B", "n": 1}], "address": {"city": "北京"}, "tags": []}'
    assert json_answers.fields(wanted) == {
        "name": '"李明"', "items[0].sku": '"A"', "items[0].n": "2", "items[1].sku": '"B"', "items[1].n": "1",
        "address.city": '"北京"', "tags": "[]",
    }  # fmt: skip
    said = '{"items":[{"sku":"A","n":"2"}],"name":"李明","address":{"city":"北京","zip":null},"tags":[]}'
    kinds = json_answers.compare(json_answers.fields(said), json_answers.fields(wanted) or {})
    assert kinds == {
        "name": "right", "items[0].sku": "right", "items[0].n": "wrong", "items[1].sku": "missing",
        "items[1].n": "missing", "address.city": "right", "tags": "right", "address.zip": "extra",
    }  # fmt: skip
    found = scores.measure([said, f"```json\n{wanted}\n```", wanted], [wanted] * 3)
    assert found["json_valid"].value == pytest.approx(2 / 3)
    assert found["field_accuracy"].value == pytest.approx((4 + 0 + 7) / 21)
    assert found["field_accuracy"].values == pytest.approx([4 / 7, 0, 1])
    assert found["field_missing"].value == pytest.approx((2 + 7) / 21)
    assert found["field_extra"].value == pytest.approx(1 / 13)
    assert json_answers.by_field([said], [wanted])["address.zip"] == {"extra": 1}
    assert "json_valid" not in scores.measure([wanted], ["no object"])


@pytest.mark.parametrize("text", ["", "[1]", "3", "{", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}', "[" * 100_000, '{"a":' * 100_000])  # fmt: skip
def test_what_is_no_json_object(text: str) -> None:
    assert json_answers.fields(text) is None


def test_paths_and_values_of_json_are_not_mixed_up() -> None:
    assert json_answers.fields('{"a.b": 1}') != json_answers.fields('{"a": {"b": 1}}')
    assert json_answers.fields('{"a[0]": 1}') != json_answers.fields('{"a": [1]}')
    values = ['{"a": 1}', '{"a": 1.0}', '{"a": true}', '{"a": "1"}', '{"a": null}', "{}", '{"a": {}}']
    assert len({json.dumps(json_answers.fields(text)) for text in values}) == len(values)


def test_distinct_by_hand() -> None:
    found = scores.variety(["a b a b", "a b c", ""])["distinct_2"]
    assert found.value == pytest.approx(3 / 5)  # ab ba ab + ab bc
    assert found.values[:2] == pytest.approx([2 / 3, 1]) and math.isnan(found.values[2])
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
    assert broken["repetition_rate"].values == pytest.approx([0, 1 - 2 / 9, 1 - 1 / 497, 1 - 2 / 797])


AWKWARD = ["", " \n\t ", "哈" * 10_000, "ha" * 5_000, "a b c " * 3_000, "🙂" * 10_000, "👩‍👩‍👧‍👦🇨🇳", "１２３，４５６", "。。。", "\u200b\ufeff", "\0\x1b[0m",
           "mixed 中文 and English 混合", "ทดสอบ हिन्दी العربية", "𠀀𠀁", "e\u0301", "a" * 10_000]  # fmt: skip


def test_awkward_texts_have_sensible_scores() -> None:
    pairs = [(one, other) for one in AWKWARD for other in (one, "", AWKWARD[2], "mixed 中文 and English 混合")]
    said, wanted = [one for one, _ in pairs], [other for _, other in pairs]
    reasons, count = ["stop", "length", None, "abort"] * (len(said) // 4), [7] * len(said)
    found = scores.measure(said, wanted, finish_reasons=reasons, output_tokens=count, seconds=[0.5] * len(said),
                           nats=[3.5] * len(said), tokens=count)  # fmt: skip
    for name, one in found.items():
        assert one.value is not None and math.isfinite(one.value), name
        assert one.bounds is None or one.bounds[0] <= one.value <= one.bounds[1], name
        assert len(one.rows) == len(said) == len(one.values), name
    same = [
        place
        for place, (one, other) in enumerate(zip(said, wanted, strict=True))
        if one == other and len(normalise.words(one))
    ]
    for name in ("exact_match", "exact_match_normalised", "token_f1", "rouge_l"):
        assert found[name].values[same] == pytest.approx(1), name
    assert found["stop_rate"].value == 0.25 and found["latency"].value == 0.5 and found["output_tokens"].value == 7
    assert found["perplexity"].value == pytest.approx(math.exp(0.5))
    assert scores.measure(["１２３"], ["123"])["exact_match_normalised"].value == 1


def test_perplexity_weighs_tokens_and_leaves_out_rows_without() -> None:
    found = scores.measure(["x"] * 3, ["x"] * 3, nats=[2.0, 30.0, 0.0], tokens=[4, 10, 0])["perplexity"]
    assert found.value == pytest.approx(math.exp(32 / 14))
    assert found.values[:2] == pytest.approx([math.exp(0.5), math.exp(3)]) and math.isnan(found.values[2])


def test_no_rows_at_all() -> None:
    found = scores.measure([], [], finish_reasons=[], output_tokens=[], seconds=[], nats=[], tokens=[])
    assert {one.value for one in found.values()} == {None}
    keys = {"perplexity", "exact_match", "rouge_l", "bleu", "chrf", "distinct_2", "repetition_rate", "stop_rate"}
    assert keys <= found.keys()
    with pytest.raises(ValueError):
        scores.measure(["a"], [])
