"""BLEU and chrF against sacrebleu itself."""

import numpy
import pytest
import sacrebleu
from support.answer_pairs import KINDS, pairs

from lockstep.evaluation import bleu_chrf


def sentence_scores(
    metric: sacrebleu.BLEU | sacrebleu.CHRF, predictions: list[str], references: list[str]
) -> list[float]:
    return [
        metric.sentence_score(prediction, [reference]).score
        for prediction, reference in zip(predictions, references, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_bleu_is_sacrebleus(kind: str) -> None:
    predictions, references = pairs(kind)
    tokenize = "13a" if kind == "en" else "zh"
    assert bleu_chrf.tokenization(references) == tokenize
    ours = bleu_chrf.bleu(predictions, references)
    corpus = sacrebleu.BLEU(tokenize=tokenize).corpus_score(predictions, [references])
    assert ours.value == pytest.approx(corpus.score, abs=1e-6)
    assert ours.value is not None and ours.value > 5
    sentence = sacrebleu.BLEU(tokenize=tokenize, effective_order=True)
    assert ours.row_values == pytest.approx(sentence_scores(sentence, predictions, references), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_chrf_is_sacrebleus(kind: str) -> None:
    predictions, references = pairs(kind)
    ours, metric = bleu_chrf.chrf(predictions, references), sacrebleu.CHRF()
    assert ours.value == pytest.approx(metric.corpus_score(predictions, [references]).score, abs=1e-6)
    assert ours.value is not None and ours.value > 5
    assert ours.row_values == pytest.approx(sentence_scores(metric, predictions, references), abs=1e-6)


def test_the_score_of_any_choice_of_rows_is_sacrebleus_of_these_rows() -> None:
    predictions, references = pairs("zh", 12)
    bleu, bleu_metric = bleu_chrf.bleu(predictions, references), sacrebleu.BLEU(tokenize="zh")
    chrf, chrf_metric = bleu_chrf.chrf(predictions, references), sacrebleu.CHRF()
    for seed in range(40):  # a few rows at a time: orders without a match, without an n-gram at all, and only blanks
        chosen = numpy.random.default_rng(seed).integers(0, len(references), 1 + seed % 4)
        rows = [predictions[row] for row in chosen], [[references[row] for row in chosen]]
        bleu_score = bleu_chrf.bleu_from_sums(bleu.statistics[chosen].sum(axis=0))
        chrf_score = bleu_chrf.chrf_from_sums(chrf.statistics[chosen].sum(axis=0))
        assert bleu_score == pytest.approx(bleu_metric.corpus_score(*rows).score, abs=1e-6)
        assert chrf_score == pytest.approx(chrf_metric.corpus_score(*rows).score, abs=1e-6)


def test_which_tokenizer_bleu_takes() -> None:
    assert bleu_chrf.tokenization(["a cat", "naïve £5"]) == "13a"
    assert bleu_chrf.tokenization(["a cat", "一只猫"]) == "zh"
    assert bleu_chrf.tokenization(["猫がいます", "犬もいる"]) == "char"


def test_english_rows_beside_chinese_ones_score_as_english_alone() -> None:
    predictions, references = pairs("en")
    alone = sacrebleu.BLEU(tokenize="13a", effective_order=True)
    together = bleu_chrf.bleu([*predictions, "猫"], [*references, "一只猫"]).row_values[:-1]
    assert together == pytest.approx(sentence_scores(alone, predictions, references), abs=1e-6)
