"""The arithmetic between two looks at a server's metrics."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.programs import ROOT

from lockstep.client import vllm_metrics
from lockstep.client.vllm_metrics import Snapshot, between, quantile

INF = math.inf


def recorded(when: str) -> Snapshot:
    text = (ROOT / f"tests/recorded/metrics-{when}.txt").read_text(encoding="utf-8")
    return vllm_metrics.read(text, {"before": 100.0, "after": 110.0}[when])


def test_rates_are_differences_over_time() -> None:
    before, after = recorded("before"), recorded("after")
    rates = between(before, after)
    assert rates is not None
    assert rates.seconds == 10
    assert rates.output_tokens == (after.counters["output_tokens"] - before.counters["output_tokens"]) / 10 > 0
    assert rates.prompt_tokens == (after.counters["prompt_tokens"] - before.counters["prompt_tokens"]) / 10 > 0
    assert rates.errors == 0 and rates.finished["length"] > 0
    assert rates.ttft and rates.itl and rates.e2e
    assert all(0 < p50 <= p95 for p50, p95 in (rates.ttft, rates.itl, rates.e2e))
    assert rates.cache_hit_rate == 0


def test_nothing_happened_means_no_figures_and_no_division_by_nothing() -> None:
    before = recorded("before")
    after = recorded("before")
    after.time += 2
    rates = between(before, after)
    assert rates is not None
    assert (rates.ttft, rates.cache_hit_rate, rates.finished, rates.output_tokens) == (None, None, {}, 0)
    assert between(before, before) is None


def test_a_server_that_began_anew_has_no_difference() -> None:
    after = recorded("before")
    after.time += 20
    assert between(recorded("after"), after) is None


def test_several_engines_are_one_server_and_errors_are_counted() -> None:
    def text(first: int, failed: int) -> str:
        return (
            "# TYPE vllm:generation_tokens counter\n"
            f'vllm:generation_tokens_total{{engine="0"}} {first}\nvllm:generation_tokens_total{{engine="1"}} 10\n'
            "# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 3\n'
            "# TYPE vllm:kv_cache_usage_perc gauge\n"
            'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 0.5\n'
            "# TYPE http_requests counter\n"
            f'http_requests_total{{status="2xx"}} {first}\nhttp_requests_total{{status="4xx"}} {failed}\n'
            "# TYPE vllm:request_success counter\n"
            f'vllm:request_success_total{{finished_reason="abort"}} {failed}\n'
        )

    rates = between(vllm_metrics.read(text(0, 0), 0.0), vllm_metrics.read(text(40, 3), 4.0))
    assert rates is not None
    assert (rates.output_tokens, rates.running, rates.kv_cache, rates.errors) == (10, 5, 0.5, 6)
    with pytest.raises(ValueError):
        vllm_metrics.read("<html>", 0.0)


def test_quantiles_lie_where_prometheus_puts_them() -> None:
    buckets = {0.1: 0.0, 0.2: 10.0, 0.4: 30.0, INF: 40.0}
    assert quantile(buckets, 0.25) == pytest.approx(0.2)
    assert quantile(buckets, 0.5) == pytest.approx(0.3)
    assert quantile(buckets, 0.95) == 0.4  # above the last finite bound that is all that is known
    assert quantile({0.1: 5.0, INF: 5.0}, 0.5) == pytest.approx(0.05)
    assert quantile({0.1: 0.0, INF: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None


@given(st.lists(st.floats(0.001, 9.9), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(seen: list[float], share: float) -> None:
    bounds = [0.01, 0.1, 0.5, 1.0, 5.0, 10.0, INF]
    guess = quantile({bound: float(sum(x <= bound for x in seen)) for bound in bounds}, share)
    true = sorted(seen)[max(0, math.ceil(share * len(seen) - 1e-9) - 1)]
    place = next(n for n, bound in enumerate(bounds) if true <= bound)
    assert guess is not None
    assert ([0.0, *bounds][place] - 1e-6) <= guess <= bounds[place] + 1e-6
