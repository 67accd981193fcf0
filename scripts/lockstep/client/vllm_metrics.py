"""vLLM's own metrics, and what two readings of them say about the time between.

vLLM counts from its start on, so the difference of two readings is what happened between them. A server that was
restarted counts from zero again: then there is no difference.
"""

import math
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

TTFT, ITL, E2E = (
    f"vllm:{name}_seconds" for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency")
)
HISTOGRAMS = (TTFT, ITL, E2E)
COUNTERS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
    "cache_hits": "vllm:prefix_cache_hits_total",
    "cache_queries": "vllm:prefix_cache_queries_total",
    "preemptions": "vllm:num_preemptions_total",
}
FINISHED, ANSWERED = "vllm:request_success_total", "http_requests_total"
RUNNING, WAITING, CACHE = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"

Buckets = dict[float, float]  # upper bound in seconds → observations of at most that


@dataclass
class Snapshot:
    """One reading of /metrics, summed over the server's engines and models."""

    time: float
    running: float = 0.0
    waiting: float = 0.0
    cache: float = 0.0  # share of the KV cache in use, on the engine where it is largest
    counters: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    finished: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    statuses: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    histograms: dict[str, Buckets] = field(default_factory=lambda: {name: defaultdict(float) for name in HISTOGRAMS})


@dataclass
class Rates:
    """What happened between two readings. A figure is None where nothing happened that it could measure.

    Attributes:
        seconds: between the readings.
        running, waiting, kv_cache, preemptions: requests, requests, share of the cache in use, number.
        prompt_tokens, output_tokens: per second.
        ttft, itl, e2e: p50 and p95 in seconds: time to first token, inter-token latency, end-to-end latency.
        cache_hit_rate: share of prompt tokens that were in the prefix cache.
        finished: requests by finish reason.
        errors: requests that vLLM answered with 4xx or 5xx, or gave up.
    """

    seconds: float
    running: int
    waiting: int
    kv_cache: float
    prompt_tokens: float
    output_tokens: float
    ttft: tuple[float, float] | None
    itl: tuple[float, float] | None
    e2e: tuple[float, float] | None
    cache_hit_rate: float | None
    preemptions: int
    finished: dict[str, int]
    errors: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read(text: str, now: float) -> Snapshot:
    """A reading of /metrics.

    Args:
        text: its body.
        now: time in seconds.

    Raises:
        ValueError: it is not in Prometheus' format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    seen = Snapshot(now)
    names = {metric: ours for ours, metric in COUNTERS.items()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            base = sample.name.removesuffix("_bucket")
            if not math.isfinite(sample.value):  # Prometheus' way to say that there is no value
                continue
            if sample.name in names:
                seen.counters[names[sample.name]] += sample.value
            elif base in seen.histograms and base != sample.name:
                seen.histograms[base][float(sample.labels["le"])] += sample.value
            elif sample.name == FINISHED:
                seen.finished[sample.labels["finished_reason"]] += sample.value
            elif sample.name == ANSWERED:
                seen.statuses[sample.labels["status"]] += sample.value
            elif sample.name == RUNNING:
                seen.running += sample.value
            elif sample.name == WAITING:
                seen.waiting += sample.value
            elif sample.name == CACHE:
                seen.cache = max(seen.cache, sample.value)
    return seen


def between(before: Snapshot, after: Snapshot) -> Rates | None:
    """What happened between two readings; None where the server was restarted, or no time passed."""
    seconds = after.time - before.time
    grown = _grown(before.counters, after.counters)
    finished = _grown(before.finished, after.finished)
    statuses = _grown(before.statuses, after.statuses)
    if seconds <= 0 or any(change < 0 for part in (grown, finished, statuses) for change in part.values()):
        return None
    queries = grown.get("cache_queries", 0.0)
    failed = sum(n for status, n in statuses.items() if status[0] in "45")
    return Rates(
        seconds=seconds,
        running=round(after.running),
        waiting=round(after.waiting),
        kv_cache=after.cache,
        prompt_tokens=grown.get("prompt_tokens", 0.0) / seconds,
        output_tokens=grown.get("output_tokens", 0.0) / seconds,
        ttft=_spread(before, after, TTFT),
        itl=_spread(before, after, ITL),
        e2e=_spread(before, after, E2E),
        cache_hit_rate=grown["cache_hits"] / queries if queries else None,
        preemptions=round(grown.get("preemptions", 0.0)),
        finished={reason: round(n) for reason, n in finished.items() if n},
        errors=round(failed + sum(finished.get(reason, 0.0) for reason in ("abort", "error"))),
    )


def quantile(buckets: Buckets, share: float) -> float | None:
    """The value below which a share of the observations lies, estimated as by Prometheus' histogram_quantile.

    Observations count as evenly spread within a bucket; for those above the last finite bound, that bound is the
    estimate. None where there are no observations.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = share * buckets[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (buckets[bound] - below)
        low, below = (low if math.isinf(bound) else bound), buckets[bound]
    return low


def _grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def _spread(before: Snapshot, after: Snapshot, name: str) -> tuple[float, float] | None:
    old = before.histograms[name]
    new = {bound: count - old.get(bound, 0.0) for bound, count in after.histograms[name].items()}
    p50, p95 = quantile(new, 0.5), quantile(new, 0.95)
    return (p50, p95) if p50 is not None and p95 is not None else None
