"""Measures of a set of answers: a value that is made of sums over its rows, so that rows can be drawn again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy
from numpy.typing import ArrayLike, NDArray

Array = NDArray[numpy.float64]
HIGHER, LOWER, NEITHER = 1, -1, 0


@dataclass(frozen=True, eq=False)
class Measure:
    """One figure of a set of answers.

    Attributes:
        rows: (rows, k) statistics of each row; float64.
        of: sums over rows, (…, k) → the figure, (…); nan where it has none.
        better: HIGHER, LOWER, or NEITHER where no value is the better one.
        bounds: the least and the largest possible value, where there are such.
        values: (rows,) the figure of each row alone, to show beside it; nan where it has none.
        proportion: rows are (1 or 0, 1), or (0, 0) where a row does not count.
        signature: sacrebleu's, which says how it was computed.
    """

    rows: Array
    of: Callable[[Array], Array]
    better: int = HIGHER
    bounds: tuple[float, float] | None = (0.0, 1.0)
    values: Array = field(default_factory=lambda: numpy.empty(0))
    proportion: bool = False
    signature: str | None = None

    @property
    def value(self) -> float | None:
        """The figure of all rows; None where they have none."""
        found = float(self.of(self.rows.sum(axis=0)))
        return found if numpy.isfinite(found) else None


def quotient(above: Array, below: Array) -> Array:
    """above / below, and nan where that is 0 / 0."""
    found: Array = numpy.where(below > 0, above / numpy.where(below > 0, below, 1.0), numpy.nan)
    return found


def ratio_of(sums: Array) -> Array:
    """First sum over second."""
    return quotient(sums[..., 0], sums[..., 1])


def perplexity_of(sums: Array) -> Array:
    """exp of nats over tokens; a number also where that would not fit into one."""
    found: Array = numpy.exp(numpy.minimum(ratio_of(sums), 700.0))
    return found


def mean(
    values: Sequence[float | None] | Array, better: int = HIGHER, bounds: tuple[float, float] | None = (0.0, 1.0)
) -> Measure:
    """The mean of a value of each row; rows whose value is None or nan do not count."""
    found = numpy.array([numpy.nan if value is None else value for value in values], dtype=numpy.float64)
    counts = ~numpy.isnan(found)
    rows = numpy.stack([numpy.where(counts, found, 0.0), counts.astype(numpy.float64)], axis=1)
    return Measure(rows, ratio_of, better, bounds, found)


def share(flags: Sequence[bool | None], better: int = HIGHER) -> Measure:
    """The share of rows of which something is true."""
    found = mean([None if flag is None else float(flag) for flag in flags], better)
    return Measure(found.rows, ratio_of, better, (0.0, 1.0), found.values, proportion=True)


def ratio(above: ArrayLike, below: ArrayLike, better: int) -> Measure:
    """A part of a whole, both summed over rows, as right fields of wanted fields."""
    rows = numpy.stack([numpy.asarray(above, numpy.float64), numpy.asarray(below, numpy.float64)], axis=1)
    return Measure(rows, ratio_of, better, (0.0, 1.0), ratio_of(rows))


def perplexity(nats: ArrayLike, tokens: ArrayLike) -> Measure:
    """exp of the mean negative log-probability of a token, over the tokens of all rows.

    Args:
        nats: (rows,) sums of −log p over each row's answer; tokens: (rows,) how many each has.
    """
    rows = numpy.stack([numpy.asarray(nats, numpy.float64), numpy.asarray(tokens, numpy.float64)], axis=1)
    return Measure(rows, perplexity_of, LOWER, None, perplexity_of(rows))


def linear(value: float, without: Array, better: int, bounds: tuple[float, float], values: Array) -> Measure:
    """A figure that is no function of sums, by what it would be without each row (its jackknife values).

    The rows' shares in it are its pseudo-values, moved so that their mean is the figure itself.
    By the Efron–Stein inequality their variance is not too small on average.

    Args:
        without: (rows,) the figure of all other rows.
    """
    if not len(without):
        return Measure(numpy.empty((0, 2)), ratio_of, better, bounds, values)
    parts = value + (len(without) - 1) * (without.mean() - without)
    return Measure(numpy.stack([parts, numpy.ones(len(without))], axis=1), ratio_of, better, bounds, values)
