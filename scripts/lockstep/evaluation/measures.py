"""Measures of a set of answers: figures computed from sums over rows, so that rows can be resampled.

`catalogue` lists the measures by name; here is how one is built from what is known of each row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy
from numpy.typing import ArrayLike, NDArray

from lockstep.evaluation.catalogue import HIGHER, LOWER, UNIT, Bounds

Array = NDArray[numpy.float64]


@dataclass(frozen=True, eq=False)
class Measure:
    """One figure of a set of answers.

    Attributes:
        statistics: (rows, k) what each row adds to the sums that the figure is computed from; float64.
        from_sums: sums over rows, (…, k) → the figure, (…); nan where it is undefined.
        better: HIGHER, LOWER, or NEITHER where no direction is the better one.
        bounds: the least and the largest possible value; None where there is no limit.
        row_values: (rows,) the figure of each row alone; nan where it is undefined.
        proportion: every row's statistics are (1 or 0, 1), or (0, 0) where the row does not count.
    """

    statistics: Array
    from_sums: Callable[[Array], Array]
    better: int = HIGHER
    bounds: Bounds | None = UNIT
    row_values: Array = field(default_factory=lambda: numpy.empty(0))
    proportion: bool = False

    @property
    def value(self) -> float | None:
        """The figure of all rows together; None where it is undefined."""
        figure = float(self.from_sums(self.statistics.sum(axis=0)))
        return figure if numpy.isfinite(figure) else None


def quotient(above: Array, below: Array) -> Array:
    """above / below, and nan where below is 0."""
    divided: Array = numpy.where(below > 0, above / numpy.where(below > 0, below, 1.0), numpy.nan)
    return divided


def ratio_from_sums(sums: Array) -> Array:
    """First sum over second, (…, 2) → (…)."""
    return quotient(sums[..., 0], sums[..., 1])


def perplexity_from_sums(sums: Array) -> Array:
    """exp(nats / tokens), (…, 2) → (…); the exponent is capped so that the result stays finite."""
    perplexities: Array = numpy.exp(numpy.minimum(ratio_from_sums(sums), 700.0))
    return perplexities


def mean(values: Sequence[float | None] | Array, better: int = HIGHER, bounds: Bounds | None = UNIT) -> Measure:
    """The mean of one value per row; rows whose value is None or nan do not count."""
    row_values = numpy.array([numpy.nan if value is None else value for value in values], dtype=numpy.float64)
    counts = ~numpy.isnan(row_values)
    statistics = numpy.stack([numpy.where(counts, row_values, 0.0), counts.astype(numpy.float64)], axis=1)
    return Measure(statistics, ratio_from_sums, better, bounds, row_values)


def share(flags: Sequence[bool | None], better: int = HIGHER, bounds: Bounds | None = UNIT) -> Measure:
    """The share of rows whose flag is true; rows whose flag is None do not count."""
    as_mean = mean([None if flag is None else float(flag) for flag in flags], better, bounds)
    return Measure(as_mean.statistics, ratio_from_sums, better, bounds, as_mean.row_values, proportion=True)


def ratio(above: ArrayLike, below: ArrayLike, better: int = HIGHER, bounds: Bounds | None = UNIT) -> Measure:
    """A part of a whole, both summed over rows before they are divided.

    Args:
        above, below: (rows,) each row's part and whole, such as its correct fields and its reference's fields.
    """
    statistics = numpy.stack([numpy.asarray(above, numpy.float64), numpy.asarray(below, numpy.float64)], axis=1)
    return Measure(statistics, ratio_from_sums, better, bounds, ratio_from_sums(statistics))


def perplexity(nats: ArrayLike, tokens: ArrayLike, better: int = LOWER, bounds: Bounds | None = None) -> Measure:
    """exp of the mean negative log-probability of a token, over the tokens of all rows.

    Args:
        nats: (rows,) the sum of −log p over the tokens of each row.
        tokens: (rows,) how many tokens that is.
    """
    statistics = numpy.stack([numpy.asarray(nats, numpy.float64), numpy.asarray(tokens, numpy.float64)], axis=1)
    return Measure(statistics, perplexity_from_sums, better, bounds, perplexity_from_sums(statistics))


def from_jackknife(value: float, without: Array, better: int, bounds: Bounds | None, row_values: Array) -> Measure:
    """A figure that is not a function of sums, from its jackknife values.

    A row's statistic is its pseudo-value, shifted so that the mean over the rows is the figure itself.
    By the Efron–Stein inequality the variance of these is, on average, not too small.

    Args:
        value: the figure of all rows.
        without: (rows,) the figure of all rows but this one.
    """
    if not len(without):
        return Measure(numpy.empty((0, 2)), ratio_from_sums, better, bounds, row_values)
    pseudo_values = value + (len(without) - 1) * (without.mean() - without)
    statistics = numpy.stack([pseudo_values, numpy.ones(len(without))], axis=1)
    return Measure(statistics, ratio_from_sums, better, bounds, row_values)
