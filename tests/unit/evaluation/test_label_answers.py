"""Accuracy and F1 of labels, against figures worked out by hand."""

import pytest

from lockstep.evaluation import label_answers


def test_labels_are_few_short_and_recur() -> None:
    references = ["Positive", "negative", "neutral", "negative", "positive"] * 4
    assert label_answers.labels(references) == ["negative", "neutral", "positive"]
    assert label_answers.labels(references[:14]) == []  # under five rows a label
    assert label_answers.labels(["yes"] * 40) == [] and label_answers.labels(["a", ""] * 10) == []
    assert label_answers.labels(["x" * 41, "y"] * 10) == []
    assert label_answers.labels([str(n) for n in range(100)]) == []


def test_accuracy_and_f1_by_hand() -> None:
    references = ["a"] * 6 + ["b"] * 4
    predictions = ["A.", "a", "a", "b", "none of them", "", "b", "b", "a", "b"]
    figures = label_answers.score_labels(predictions, references)
    # a: 3 hits, 4 answers, 6 references → 6/10; b: 3 hits, 4 answers, 4 references → 6/8
    assert figures["accuracy"].value == pytest.approx(0.6) and figures["accuracy"].proportion
    assert figures["macro_f1"].value == pytest.approx((0.6 + 0.75) / 2)
    assert figures["micro_f1"].value == pytest.approx(2 * 6 / (8 + 10))


def test_a_text_that_only_looks_like_a_label_is_none() -> None:
    figures = label_answers.score_labels(["yes\0", "yes"] * 5, ["yes", "no"] * 5)
    assert figures["accuracy"].value == 0 and figures["micro_f1"].value == 0


def test_references_that_are_no_labels_have_no_accuracy() -> None:
    assert label_answers.score_labels(["one", "two"], ["a long answer", "another"]) == {}
