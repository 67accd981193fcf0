"""Intervals of proportions that stay honest where no row, or every row, is right; a bootstrap's have no width there."""

import math
from statistics import NormalDist

Interval = tuple[float, float]
HALVINGS = 60  # of an interval inside [-1, 1]: finer than a float can tell


def quantile(level: float) -> float:
    """The normal quantile z of a two-sided interval: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def unseen(rows: float, level: float) -> float:
    """The largest share that an event may have which occurred in none of so many rows: Wilson's upper limit at 0."""
    square = quantile(level) ** 2
    return square / (rows + square)


def wilson(right: float, rows: float, level: float) -> Interval:
    """The interval of a proportion, `right` of `rows` > 0.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    square = quantile(level) ** 2
    share = right / rows
    middle = share + square / (2 * rows)
    half = math.sqrt(square * (share * (1 - share) + square / (4 * rows)) / rows)
    scale = 1 + square / rows
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def tango(gained: float, lost: float, rows: float, level: float) -> Interval:
    """The interval of the difference between two proportions of the same rows, second minus first.

    It holds every difference that McNemar's score test does not reject; its ends are found by bisection.
    Source: Tango, Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design (1998).

    Args:
        gained: rows that only the second got right.
        lost: rows that only the first got right.
    """
    limit, observed = quantile(level), (gained - lost) / rows

    def score(supposed: float) -> float:
        """By how many standard errors the observed difference exceeds a supposed one."""
        # the share of rows lost that is likeliest under the supposed difference: root of a quadratic
        linear = -gained - lost + (2 * rows - gained + lost) * supposed
        constant = -lost * supposed * (1 - supposed)
        lost_share = (math.sqrt(max(0.0, linear**2 - 8 * rows * constant)) - linear) / (4 * rows)
        variance = rows * (2 * lost_share + supposed * (1 - supposed))
        excess = gained - lost - rows * supposed
        return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess)

    def edge(inside: float, outside: float) -> float:
        """The last difference on the way from inside to outside that is not rejected."""
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            if abs(score(middle)) <= limit:
                inside = middle
            else:
                outside = middle
        return inside

    return edge(observed, -1.0), edge(observed, 1.0)
