"""Simulations whose truth is known: two samplings of one model, a planted gain, and how often intervals hold the truth."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest

from lockstep.evaluation import bleu_chrf, bootstrap, measures, scores
from lockstep.evaluation.bootstrap import difference, interval
from lockstep.evaluation.catalogue import HIGHER, LOWER, NEITHER, PERCENT
from lockstep.evaluation.measures import Measure

Random = numpy.random.Generator
SEEDS = 200


def flags(rate: float) -> Callable[[Random, int], tuple[Measure, Measure]]:
    """Rows differ in difficulty, so the two answers of a row agree more often than by chance."""

    def pair(random: Random, rows: int) -> tuple[Measure, Measure]:
        chance = random.beta(rate, 1 - rate, rows)
        base, tuned = (random.random((2, rows)) < chance).tolist()
        return measures.share(base), measures.share(tuned)

    return pair


def rouge(random: Random, rows: int) -> tuple[Measure, Measure]:
    mean = random.beta(1, 2, rows)
    base, tuned = random.beta(5 * mean + 0.05, 5 * (1 - mean) + 0.05, (2, rows))
    return measures.mean(base), measures.mean(tuned)


def repetition(random: Random, rows: int) -> tuple[Measure, Measure]:
    """Nothing repeats in most answers, and all of it in a few."""
    drawn = numpy.where(random.random((2, rows)) < 0.08, random.beta(6, 1, (2, rows)), 0.0)
    return measures.mean(drawn[0], LOWER), measures.mean(drawn[1], LOWER)


def perplexity(random: Random, rows: int) -> tuple[Measure, Measure]:
    """Nats of a token are log-normal over rows, and now and then ten times as many."""
    tokens = random.integers(3, 300, rows)
    row = random.lognormal(0, 0.7, rows)
    drawn = row * random.lognormal(0, 0.3, (2, rows)) * numpy.where(random.random((2, rows)) < 0.02, 10, 1)
    return measures.perplexity(drawn[0] * tokens, tokens), measures.perplexity(drawn[1] * tokens, tokens)


def bleu_rows(random: Random, rows: int) -> tuple[Measure, Measure]:
    """Matches of each order are a part of those of the order before, as in real answers."""
    reference_words = random.integers(3, 120, rows)
    quality = random.beta(2, 3, rows)
    figures = []
    for _ in range(2):
        words = numpy.maximum(1, (reference_words * random.lognormal(0, 0.4, rows)).astype(int))
        matched, counts = words, [words, reference_words]
        totals = [numpy.maximum(0, words - order) for order in range(4)]
        matches = []
        for total in totals:
            matched = random.binomial(numpy.minimum(matched, total), quality)
            matches.append(matched)
        stacked = numpy.stack([*counts, *matches, *totals], axis=1).astype(float)
        figures.append(Measure(stacked, bleu_chrf.bleu_from_sums, HIGHER, PERCENT))
    return figures[0], figures[1]


def distinct(random: Random, rows: int) -> tuple[Measure, Measure]:
    """Words by Zipf's law; now and then a whole answer is a common phrase."""

    def answers() -> list[list[str]]:
        ranks = random.zipf(1.4, (rows, 30)) % 5000
        stock = random.random(rows) < 0.2
        return [
            list(map(str, range(20))) if is_stock else list(map(str, row))
            for row, is_stock in zip(ranks, stock, strict=True)
        ]

    return scores.distinct(answers()), scores.distinct(answers())


KINDS: dict[str, Callable[[Random, int], tuple[Measure, Measure]]] = {
    "exact_match 0.01": flags(0.01),
    "exact_match 0.1": flags(0.1),
    "exact_match 0.5": flags(0.5),
    "exact_match 0.99": flags(0.99),
    "rouge_l": rouge,
    "repetition_rate": repetition,
    "perplexity": perplexity,
    "bleu": bleu_rows,
    "distinct_2": distinct,
}


@pytest.mark.parametrize("rows", [20, 60, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_two_samplings_of_one_model_are_undecided(kind: str, rows: int) -> None:
    """At 99 % at most 2 of 200 are expected; above 5 % would break what the report promises."""
    pairs = [KINDS[kind](numpy.random.default_rng([7, seed]), rows) for seed in range(SEEDS)]
    verdicts = [difference(base, tuned, draws=1000).verdict for base, tuned in pairs]
    assert verdicts.count("undecided") >= 0.95 * SEEDS


@pytest.mark.parametrize("kind", ["exact_match 0.5", "rouge_l", "bleu", "perplexity"])
def test_random_halves_of_one_models_rows_are_undecided(kind: str) -> None:
    verdicts = []
    for seed in range(SEEDS):
        random = numpy.random.default_rng([8, seed])
        whole, _ = KINDS[kind](random, 120)
        order = random.permutation(120)
        halves = [replace(whole, statistics=whole.statistics[rows]) for rows in (order[:60], order[60:])]
        verdicts.append(difference(*halves, draws=1000).verdict)
    assert verdicts.count("undecided") >= 0.95 * SEEDS


def test_a_planted_gain_is_found_and_a_loss_too() -> None:
    detected = {"flags": 0, "rouge": 0, "perplexity": 0, "bleu": 0}
    for seed in range(50):
        random = numpy.random.default_rng([9, seed])
        flags_base, flags_tuned = (random.random((2, 100)) < [[0.4], [0.7]]).tolist()
        gain = difference(measures.share(flags_base), measures.share(flags_tuned), draws=1000)
        detected["flags"] += gain.verdict == "better"
        base, tuned = rouge(random, 100)
        gain = measures.mean(numpy.minimum(1, tuned.row_values + 0.2))
        detected["rouge"] += difference(base, gain, draws=1000).verdict == "better"
        base, tuned = perplexity(random, 100)
        worse = measures.perplexity(tuned.statistics[:, 0] * 2, tuned.statistics[:, 1])
        detected["perplexity"] += difference(base, worse, draws=1000).verdict == "worse"
        base, tuned = bleu_rows(random, 100)
        lost = tuned.statistics.copy()
        lost[:, 2:6] //= 2
        detected["bleu"] += difference(base, Measure(lost, bleu_chrf.bleu_from_sums), draws=1000).verdict == "worse"
    assert min(detected.values()) >= 40, detected


def test_the_permutation_test_is_mcnemars_exact_test() -> None:
    for gained, lost in [(9, 0), (12, 3), (10, 8), (1, 0)]:
        base = measures.share([False] * gained + [True] * lost + [True] * 40)
        tuned = measures.share([True] * gained + [False] * lost + [True] * 40)
        number = gained + lost
        exact = min(1.0, 2 * sum(math.comb(number, few) for few in range(min(gained, lost) + 1)) / 2**number)
        change = difference(base, tuned)
        assert change.p == pytest.approx(exact, abs=0.02)
        assert (change.verdict == "better") == (exact < 0.01)


@pytest.mark.parametrize(("kind", "rows", "least"), [("rouge_l", 20, 0.91), ("rouge_l", 60, 0.92), ("exact_match 0.1", 20, 0.92), ("exact_match 0.5", 60, 0.92), ("bleu", 60, 0.9), ("perplexity", 200, 0.85)])  # fmt: skip
def test_the_95_percent_interval_holds_the_truth_about_as_often(kind: str, rows: int, least: float) -> None:
    """Heavy tails take more rows than anyone has: the row that would make the difference was mostly not drawn."""
    many, _ = KINDS[kind](numpy.random.default_rng(1), 300_000)
    truth, held = many.value, 0
    assert truth is not None
    for seed in range(300):
        ci = interval(KINDS[kind](numpy.random.default_rng([2, seed]), rows)[0], draws=1000)
        assert ci is not None
        held += ci[0] <= truth <= ci[1]
    assert held / 300 >= least


def test_the_99_percent_interval_of_a_difference_holds_the_truth() -> None:
    held = 0
    for seed in range(300):
        random = numpy.random.default_rng([3, seed])
        base, tuned = rouge(random, 40)
        moved = measures.mean(tuned.row_values + 0.1, bounds=None)
        ci = difference(base, moved, draws=2000).ci
        assert ci is not None
        held += ci[0] <= 0.1 <= ci[1]
    assert held / 300 >= 0.975


def test_an_interval_has_a_width_where_all_rows_are_alike() -> None:
    none, every = measures.share([False] * 30), measures.share([True] * 30)
    assert interval(none) == pytest.approx((0.0, 0.1135), abs=1e-4)
    assert interval(every) == pytest.approx((0.8865, 1.0), abs=1e-4)
    same = difference(none, none)
    assert same.value == 0 and same.p == 1 and same.verdict == "undecided" and same.rows_needed is None
    assert same.ci == pytest.approx((-0.181, 0.181), abs=1e-3)
    full = measures.mean([1.0] * 30)
    ends = interval(full)
    assert ends is not None and ends[0] < 0.9 and ends[1] == 1.0
    assert difference(measures.mean([0.0] * 30), full).verdict == "better"
    assert difference(none, every).verdict == "better"


def test_few_rows_and_none() -> None:
    nothing = measures.mean([])
    assert nothing.value is None and interval(nothing) is None
    assert difference(nothing, nothing) == bootstrap.Difference(None, None, None, "undecided", None)
    single = measures.mean([0.3])
    assert single.value == 0.3 and interval(single) is None
    change = difference(single, measures.mean([0.9]))
    assert change.value == pytest.approx(0.6) and change.ci is None and change.verdict == "undecided"
    flag = interval(measures.share([True]))
    assert flag is not None and flag[0] < 0.21 and flag[1] == 1.0
    assert difference(measures.share([False] * 7), measures.share([True] * 7)).verdict == "undecided"
    assert difference(measures.share([False] * 12), measures.share([True] * 12)).verdict == "better"
    with pytest.raises(ValueError, match="not the same rows"):
        difference(single, nothing)


def test_rows_needed_decides_when_so_many_rows_are_there() -> None:
    random = numpy.random.default_rng(4)
    noise = random.normal(0, 0.2, 40)
    gains = noise - noise.mean() + 0.05
    base, tuned = measures.mean([0.4] * 40, bounds=None), measures.mean(0.4 + gains, bounds=None)
    change = difference(base, tuned)
    assert change.verdict == "undecided" and change.rows_needed is not None and 40 < change.rows_needed < 300
    again = -(-change.rows_needed * 11 // 400)  # the same rows over and over: same difference, same variance
    more = measures.mean([0.4] * 40 * again, bounds=None), measures.mean(numpy.tile(0.4 + gains, again), bounds=None)
    decided = difference(*more)
    assert decided.verdict == "better" and decided.rows_needed is not None and decided.rows_needed <= 40 * again


def test_directions() -> None:
    low, high = [float(place % 3) for place in range(60)], [5.0 + place % 3 for place in range(60)]
    for better, verdict in [(HIGHER, "better"), (LOWER, "worse"), (NEITHER, None)]:
        change = difference(measures.mean(low, better, None), measures.mean(high, better, None))
        assert change.verdict == verdict and change.ci is not None


def test_corpus_measures_are_drawn_by_their_sums() -> None:
    """The spread of the drawn perplexity is that of perplexities computed from drawn rows one by one."""
    random = numpy.random.default_rng(5)
    measure, _ = perplexity(random, 50)
    by_hand = []
    for _ in range(4000):
        drawn = measure.statistics[random.integers(0, 50, 50)]
        by_hand.append(math.exp(drawn[:, 0].sum() / drawn[:, 1].sum()))
    resampled = bootstrap._resampled(measure.statistics, measure.from_sums, 0, 4000)
    assert numpy.quantile(resampled, [0.1, 0.5, 0.9]) == pytest.approx(
        numpy.quantile(by_hand, [0.1, 0.5, 0.9]), rel=0.05
    )


def test_a_seed_gives_the_same_report_and_it_is_json() -> None:
    random = numpy.random.default_rng(6)
    pairs = {kind: make(random, 40) for kind, make in KINDS.items()}
    base, tuned = ({kind: pair[side] for kind, pair in pairs.items()} for side in (0, 1))
    first, again, other = (bootstrap.compare(base, tuned, seed, 500) for seed in (1, 1, 2))
    assert first == again != other
    assert json.loads(json.dumps(first, allow_nan=False))["base"]["bleu"].keys() == {"value", "ci95"}
    assert first["difference"]["bleu"].keys() == {"value", "ci", "p", "rows_needed"}
    assert set(first["verdict"]) == set(KINDS)
