"""How measures are built from what is known of each row."""

import math

import numpy
import pytest

from lockstep.evaluation import measures
from lockstep.evaluation.catalogue import HIGHER, UNIT


def test_a_mean_leaves_out_rows_without_a_value() -> None:
    figure = measures.mean([0.5, None, 1.0, math.nan])
    assert figure.value == 0.75 and figure.statistics.tolist() == [[0.5, 1], [0, 0], [1, 1], [0, 0]]
    assert numpy.isnan(figure.row_values).tolist() == [False, True, False, True]
    assert measures.mean([None]).value is None


def test_a_share_is_a_proportion_whose_rows_are_0_or_1() -> None:
    figure = measures.share([True, False, None, True])
    assert figure.proportion and figure.value == pytest.approx(2 / 3)
    assert figure.statistics.tolist() == [[1, 1], [0, 1], [0, 0], [1, 1]]


def test_a_ratio_sums_parts_and_wholes_before_it_divides() -> None:
    figure = measures.ratio([1, 9, 0], [1, 99, 0])
    assert figure.value == pytest.approx(0.1) and figure.row_values[:2] == pytest.approx([1, 1 / 11])


def test_perplexity_weighs_tokens_and_leaves_out_rows_without() -> None:
    figure = measures.perplexity([2.0, 30.0, 0.0], [4, 10, 0])
    assert figure.value == pytest.approx(math.exp(32 / 14))
    assert figure.row_values[:2] == pytest.approx([math.exp(0.5), math.exp(3)]) and math.isnan(figure.row_values[2])
    assert measures.perplexity([1e9], [1]).value == pytest.approx(math.exp(700))  # and not infinite


def test_pseudo_values_of_a_mean_are_its_rows() -> None:
    rows = numpy.array([1.0, 2.0, 6.0])
    without = (rows.sum() - rows) / 2
    figure = measures.from_jackknife(3.0, without, HIGHER, UNIT, rows)
    assert figure.value == pytest.approx(3.0) and figure.statistics[:, 0] == pytest.approx(rows)
    assert measures.from_jackknife(0.0, numpy.empty(0), HIGHER, UNIT, rows).value is None
