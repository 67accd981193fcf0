import math

import pytest

from lockstep.evaluation import verdict
from lockstep.evaluation.contestants import Case
from lockstep.evaluation.forgetting import Panel
from lockstep.settings.schema import Sampling

CASES = [Case(f"t:{n}", [{"role": "user", "content": f"q{n}"}], None, f"w{n}", [1, 2], [1], 1) for n in range(12)]


def side(right: int, nats: list[float | None]) -> verdict.Answers:
    """A contestant with so many right answers, and the nats that it has of a row's one token."""
    answers = [{"answer": f"w{n}" if n < right else "x", "finish_reason": "stop"} for n in range(12)]
    likelihood = [{"nats": value or 0.0, "tokens": int(value is not None)} for value in nats]
    return {"answers": answers, "likelihood": likelihood, "general": [], "prose": [], "reference": []}


@pytest.fixture(autouse=True)
def no_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict.contestants, "pairs", lambda split: iter([("q3", "w3")]))


def test_only_rows_that_all_have_a_likelihood_of_are_compared(tmp_path) -> None:
    base, tuned = side(0, [2.0] * 10 + [None, 2.0]), side(12, [None, *[1.0] * 11])
    metrics = verdict.metrics(CASES, {"base": base, "tuned": tuned}, Panel(), [], tmp_path, 0)
    assert metrics["tuned"]["perplexity"]["value"] == pytest.approx(math.exp(1.0))
    assert metrics["base"]["perplexity"]["value"] == pytest.approx(math.exp(2.0))
    assert metrics["tuned"]["exact_match"]["value"] == 1 and metrics["verdict"]["exact_match"] == "better"
    assert metrics["overlap"]["leaked"] == 1 and metrics["serving"] == {"tokens": 0, "perplexity": None}
    assert "runs" not in metrics


def test_a_server_that_gives_no_likelihoods_leaves_the_perplexity_open(tmp_path) -> None:
    metrics = verdict.metrics(
        CASES, {"base": side(0, [2.0] * 12), "tuned": side(6, [None] * 12)}, Panel(), [], tmp_path, 0
    )
    assert metrics["tuned"]["perplexity"]["value"] is None and metrics["verdict"]["perplexity"] == "undecided"


def test_another_run_stands_beside_the_two(tmp_path) -> None:
    sides = {"base": side(0, [2.0] * 12), "tuned": side(6, [1.0] * 12), "mine": side(9, [0.5] * 12)}
    metrics = verdict.metrics(CASES, sides, Panel(), [], tmp_path, 0)
    assert metrics["runs"]["mine"]["exact_match"]["value"] == 0.75 and metrics["tuned"]["exact_match"]["value"] == 0.5
    lines = list(verdict.predictions(CASES, sides))
    assert [line["mine"]["answer"] for line in lines][:10] == [f"w{n}" for n in range(9)] + ["x"]
    assert verdict.of_sampling(CASES, Sampling(), sides["mine"]["answers"])["exact_match"] == 0.75
