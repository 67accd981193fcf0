"""Intervals of proportions: honest where nothing, or everything, was right, as a bootstrap there is not."""

import math
from statistics import NormalDist


def quantile(level: float) -> float:
    """z of a two-sided interval: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def unseen(rows: float, level: float) -> float:
    """The largest share that an event may have which did not happen in so many rows: Wilson's limit at 0."""
    square = quantile(level) ** 2
    return square / (rows + square)


def wilson(right: float, rows: float, level: float) -> tuple[float, float]:
    """The interval of a proportion, `right` of `rows` > 0.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    square = quantile(level) ** 2
    share = right / rows
    middle = share + square / (2 * rows)
    half = math.sqrt(square * (share * (1 - share) + square / (4 * rows)) / rows)
    scale = 1 + square / rows
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def tango(gained: float, lost: float, rows: float, level: float) -> tuple[float, float]:
    """The interval of the difference of two proportions of the same rows.

    Args:
        gained: rows that only the second got right; lost: only the first.

    Holds all differences that McNemar's score test does not reject, found by halving.
    Source: Tango, Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design (1998).
    """
    limit, seen = quantile(level), (gained - lost) / rows

    def score(supposed: float) -> float:
        """How many standard errors the difference seen is above the one supposed."""
        linear = -gained - lost + (2 * rows - gained + lost) * supposed
        constant = -lost * supposed * (1 - supposed)
        cell = (math.sqrt(max(0.0, linear**2 - 8 * rows * constant)) - linear) / (4 * rows)
        variance = rows * (2 * cell + supposed * (1 - supposed))
        above = gained - lost - rows * supposed
        return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above)

    def edge(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) <= limit else (inside, middle)
        return inside

    return edge(seen, -1.0), edge(seen, 1.0)
