"""How sure a figure is, and whether tuned is better than base: by drawing the rows again.

Single figures have 95 % intervals. Differences have 99 % ones, because a verdict hangs on them and
a report holds some ten verdicts: at 95 %, two equal models would be called different in something
in every third report or so; at 99 %, in one of ten at most, in one of a hundred for each measure.
Nothing more is done about many measures.

A difference's interval excludes 0 only if a permutation test agrees at the same level: if both
models were the same, the two answers of each row could change places, and the difference seen
would be an ordinary one among those of all such exchanges. This holds exactly for any measure that adds
up over rows, any number of rows and any tail (distinct_2, of all answers together, comes near it); the
bootstrap alone is too narrow for few rows and heavy tails.
For rows that are right or wrong it is McNemar's exact test.

Measured on 1,000 simulated pairs of answer sets of one model, of 20, 60 and 200 rows each (the
simulations of tests/unit/test_bootstrap.py): a verdict in 0 to 1.5 % of them, in any measure; by
the plain percentile interval alone in up to 3.3 %. The 95 % intervals hold the truth in 94 to
99 % for means and proportions (plain percentile: 16 to 95 %), in 90 to 92 % for BLEU, and in 85
to 88 % for a perplexity with heavy tails, whose few worst rows a small sample mostly lacks.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy
from numpy.typing import NDArray

from lockstep.evaluation import proportions
from lockstep.evaluation.measures import NEITHER, Array, Measure

DRAWS = 10_000
CI, VERDICT = 0.95, 0.99
CHUNK = 500  # draws that are summed at a time
MEMORY = 50_000_000  # bytes of a table of draws: above 5,000 rows there are fewer of them
FEWEST = 8  # rows: with fewer no exchange of answers is rarer than 1 in 100, and a bootstrap knows too little

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """tuned − base.

    Attributes:
        value, ci: the difference and its 99 % interval; None where there is none.
        p: share of exchanges whose difference is at least as far from 0; None where there is none.
        verdict: better, worse or undecided; None where the measure has no better side.
        rows_needed: the rows at which the interval would leave 0 if difference and variance stayed
            as they are; a new sample of that size decides about every second time, and of 1.8 times
            that size four times of five. None where the difference is 0.
    """

    value: float | None
    ci: Interval | None
    p: float | None
    verdict: str | None
    rows_needed: int | None


def report(
    base: Mapping[str, Measure], tuned: Mapping[str, Measure], seed: int = 0, draws: int = DRAWS
) -> dict[str, Any]:
    """The tables of eval/metrics.json: base, tuned, difference and verdict, of the measures that both have.

    Measures without a better side have a difference and no verdict.
    """
    names = [name for name in base if name in tuned]
    sides = {
        side: {name: {"value": one[name].value, "ci95": interval(one[name], seed, draws)} for name in names}
        for side, one in (("base", base), ("tuned", tuned))
    }
    differences = {name: asdict(difference(base[name], tuned[name], seed, draws)) for name in names}
    verdicts = {name: one.pop("verdict") for name, one in differences.items()}
    return sides | {
        "difference": differences,
        "verdict": {name: verdict for name, verdict in verdicts.items() if verdict is not None},
    }


def interval(measure: Measure, seed: int = 0, draws: int = DRAWS, level: float = CI) -> Interval | None:
    """The interval of one figure: Wilson's for a proportion, else the bootstrap's, which is None below FEWEST rows."""
    counted = measure.rows[measure.rows.any(axis=1)]
    value = measure.value
    if value is None:
        return None
    if measure.proportion:
        right, rows = counted.sum(axis=0)
        return proportions.wilson(float(right), float(rows), level)
    if len(counted) < FEWEST:
        return None
    drawn = _drawn(counted, measure.of, seed, draws)
    found = corrected(drawn, value, measure.of(counted.sum(axis=0) - counted), level)
    return _widened(found, measure.bounds, len(counted), level, measure.bounds)


def difference(base: Measure, tuned: Measure, seed: int = 0, draws: int = DRAWS, level: float = VERDICT) -> Difference:
    """tuned − base over the same rows in the same order, and the verdict.

    Raises:
        ValueError: not the same number of rows.
    """
    if base.rows.shape != tuned.rows.shape:
        raise ValueError(f"{base.rows.shape} and {tuned.rows.shape}: not the same rows")
    width = base.rows.shape[1]
    rows = numpy.concatenate([base.rows, tuned.rows], axis=1)
    rows = rows[rows.any(axis=1)]
    if base.value is None or tuned.value is None:
        return Difference(None, None, None, None if base.better == NEITHER else "undecided", None)

    def of(sums: Array) -> Array:
        return tuned.of(sums[..., width:]) - base.of(sums[..., :width])

    value = tuned.value - base.value
    p = _exchanged(rows, of, value, seed, draws)
    drawn = _drawn(rows, of, seed, draws)
    ci = _paired_interval(base, rows, drawn, level)
    if ci is not None and p > 1 - level:
        ci = min(ci[0], 0.0), max(ci[1], 0.0)
    side = 0 if ci is None else int(ci[0] > 0) - int(ci[1] < 0)
    verdict = {1: "better", 0: "undecided", -1: "worse"}[side * base.better] if base.better != NEITHER else None
    needed = rows_needed(value, float(numpy.nanstd(drawn)), len(rows), level)
    if needed is not None:
        needed = min(needed, len(rows)) if side else max(needed, len(rows) + 1)
    return Difference(value, ci, p, verdict, needed)


def rows_needed(value: float, error: float, rows: int, level: float = VERDICT) -> int | None:
    """At how many rows an interval of this level would leave 0.

    Args:
        error: the standard error of the difference at `rows` rows; it falls with their square root.
    """
    if value == 0:
        return None
    return max(FEWEST, math.ceil(min(rows * (proportions.quantile(level) * error / value) ** 2, 1e15)))


def _paired_interval(base: Measure, rows: Array, drawn: Array, level: float) -> Interval | None:
    """Tango's for proportions, else the percentile interval: differences are about symmetric, and there BCa's
    correction for skew follows the one extreme row."""
    if base.proportion and (rows[:, 1] == rows[:, 3]).all():
        gained, lost = ((rows[:, 2] > rows[:, 0]).sum(), (rows[:, 2] < rows[:, 0]).sum())
        return proportions.tango(float(gained), float(lost), len(rows), level)
    if len(rows) < FEWEST:
        return None
    limits = None if base.bounds is None else (base.bounds[0] - base.bounds[1], base.bounds[1] - base.bounds[0])
    return _widened(percentile(drawn, len(rows), level), base.bounds, len(rows), level, limits)


def _widened(found: Interval, bounds: Interval | None, rows: int, level: float, limits: Interval | None) -> Interval:
    """The interval, but of no width 0: where all rows are alike, a share of `unseen` rows could be anything else.

    A measure without bounds keeps it: nothing says how far off an unseen row could be.
    """
    if bounds is None or limits is None or found[1] - found[0] > 1e-12 * (bounds[1] - bounds[0]):
        return found
    room = proportions.unseen(rows, level) * (bounds[1] - bounds[0])
    return max(limits[0], found[0] - room), min(limits[1], found[1] + room)


def percentile(drawn: Array, rows: int, level: float) -> Interval:
    """The interval of the middle draws, at the level that makes up for few rows.

    Source: Hesterberg, What teachers should know about the bootstrap (2015), for the level.
    """
    tail = _tail(rows, level)
    low, high = numpy.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def corrected(drawn: Array, value: float, without: Array, level: float) -> Interval:
    """Efron's BCa interval: `percentile`, corrected for bias and skew.

    Args:
        drawn: the figure of each draw; value: of the rows themselves; without: (rows,) without each row.

    Source: Efron, Better bootstrap confidence intervals (1987).
    """
    normal, rows = NormalDist(), len(without)
    drawn, without = drawn[~numpy.isnan(drawn)], without[~numpy.isnan(without)]
    below = float((drawn < value - 1e-12).mean() + (abs(drawn - value) <= 1e-12).mean() / 2)
    bias = normal.inv_cdf(min(max(below, 1 / (len(drawn) + 1)), len(drawn) / (len(drawn) + 1)))
    parts = without.mean() - without
    spread = float((parts**2).sum())
    skew = float((parts**3).sum()) / (6 * spread**1.5) if spread > 1e-200 else 0.0

    def place(z: float) -> float:
        scale = 1 - skew * (bias + z)
        return normal.cdf(bias + (bias + z) / scale) if scale > 0 else float(z > 0)

    edge = normal.inv_cdf(_tail(rows, level))
    low, high = numpy.quantile(drawn, [place(edge), place(-edge)])
    return float(low), float(high)


def _tail(rows: int, level: float) -> float:
    """The share of draws to leave out at each end: the draws' spread is too small by sqrt((rows − 1) / rows), and
    the normal quantile where Student's belongs."""
    student = _student((1 + level) / 2, rows - 1)
    return NormalDist().cdf(-math.sqrt(rows / (rows - 1)) * student)


def _student(share: float, freedom: int) -> float:
    """Student's quantile, by the Cornish–Fisher expansion; 3 % off at worst for 5 degrees of freedom or more.

    Source: Abramowitz and Stegun, 26.7.5.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def _drawn(rows: Array, of: Any, seed: int, draws: int) -> Array:
    """The figure of each draw of as many rows, with replacement. The draws of a seed are the same for all measures."""
    return numpy.concatenate(
        [of(counts @ rows) for counts in _chunks(_counts(len(rows), seed, _bounded(draws, len(rows))))]
    )


def _exchanged(rows: Array, of: Any, value: float, seed: int, draws: int) -> float:
    """p of the permutation test, two-sided: base's and tuned's statistics change places in random rows."""
    width = rows.shape[1] // 2
    gain = rows[:, width:] - rows[:, :width]
    total = rows.sum(axis=0)
    extreme, near = 0, abs(value) - 1e-9 * max(1.0, abs(value))
    draws = _bounded(draws, len(rows))
    for flags in _chunks(_flags(len(rows), seed, draws)):
        moved = flags @ gain
        found = of(total + numpy.concatenate([moved, -moved], axis=1))
        extreme += int((~(abs(found) < near)).sum())  # one that has no value counts against a difference
    return (1 + extreme) / (1 + draws)


def _bounded(draws: int, rows: int) -> int:
    return min(draws, max(2000, MEMORY // rows))


def _chunks(table: NDArray[numpy.uint8]) -> Iterator[Array]:
    for start in range(0, len(table), CHUNK):
        yield table[start : start + CHUNK].astype(numpy.float64)


@lru_cache(maxsize=1)
def _counts(rows: int, seed: int, draws: int) -> NDArray[numpy.uint8]:
    """(draws, rows): how often each row is drawn. A byte each: 10 MB for 1,000 rows."""
    random = numpy.random.default_rng([seed, rows])
    table = numpy.empty((draws, rows), numpy.uint8)
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        places = random.integers(0, rows, (size, rows)) + numpy.arange(size)[:, None] * rows
        table[start : start + size] = numpy.bincount(places.ravel(), minlength=size * rows).reshape(size, rows)
    return table


@lru_cache(maxsize=1)
def _flags(rows: int, seed: int, draws: int) -> NDArray[numpy.uint8]:
    """(draws, rows): 1 where a row's answers change places."""
    return numpy.random.default_rng([seed, rows, 1]).integers(0, 2, (draws, rows), dtype=numpy.uint8)
