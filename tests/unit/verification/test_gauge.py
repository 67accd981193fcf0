"""The metrics as Prometheus reads them: scraped over HTTP, and from the textfile."""

import re
import socket
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.programs import ROOT, free_port

from lockstep.errors import UserError
from lockstep.verification import gauge, repeating, verdict
from lockstep.verification.gauge import Metrics
from lockstep.verification.repeating import Outcome
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

LABELS = {"run": "r", "bundle": "0123"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"lockstep_verify_{name}", tuple(sorted(labels.items()))))


def scraped(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return parsed(answer.read().decode())


def outcome(kl: float, **statuses: str) -> Outcome:
    proofs = {name: Proof(statuses.get(name, PASSED)) for name in verdict.PROOFS}  # type: ignore[arg-type]
    diagnosis = "base" if statuses.get("weights") == FAILED else None
    figures = {gauge.KL: kl, "endpoint_model": "r", "passed": True}
    proofs["weights"] = Proof(proofs["weights"].status, figures, diagnosis)
    return Outcome(verdict.as_json({**proofs, "adapter": None}), 1_700_000_000.0, 12.5)


def test_every_look_is_shown_in_place_of_the_one_before() -> None:
    metrics = Metrics(LABELS, every=3600)
    port = metrics.serve("127.0.0.1", free_port())
    before = scraped(port)
    assert value(before, "info", **LABELS) == 1 and value(before, "interval_seconds") == 3600
    assert value(before, "looks_total", verdict="not_in_lockstep") == 0
    assert value(before, "last_in_lockstep_timestamp_seconds") == 0
    assert value(before, "verdict", verdict="in_lockstep") is None  # not known yet

    metrics.record(outcome(0.0003))
    good = scraped(port)
    verdicts = {name: value(good, "verdict", verdict=name) for name in verdict.EXIT_CODES}
    assert verdicts == {"in_lockstep": 1, "not_in_lockstep": 0, "undecided": 0}
    assert value(good, "kl_nats") == 0.0003 == value(good, "figure", proof="weights", figure=gauge.KL)
    assert value(good, "figure", proof="weights", figure="passed") is None  # no number
    assert value(good, "proof", proof="tokens", status="passed") == 1
    assert value(good, "proof", proof="adapter", status="unknown") is None  # it does not apply
    assert value(good, "last_look_duration_seconds") == 12.5
    assert value(good, "last_in_lockstep_timestamp_seconds") == 1_700_000_000

    metrics.record(outcome(1.5, weights=FAILED))
    bad = scraped(port)
    assert value(bad, "verdict", verdict="not_in_lockstep") == 1 and value(bad, "verdict", verdict="in_lockstep") == 0
    assert value(bad, "found", proof="weights", found="base") == 1 and value(bad, "kl_nats") == 1.5
    assert [value(bad, "proof", proof="weights", status=status) for status in (PASSED, FAILED, UNKNOWN)] == [0, 1, 0]

    metrics.record(repeating.one_look(lambda: (_ for _ in ()).throw(UserError("down"))))
    down = scraped(port)
    assert (
        value(down, "verdict", verdict="undecided") == 1 and value(down, "found", proof="weights", found="base") is None
    )
    kl = value(down, "kl_nats")
    assert kl != kl, "NaN: nothing was measured"
    counts = [value(down, "looks_total", verdict=name) for name in verdict.EXIT_CODES]
    assert counts == [1, 1, 1]
    assert value(down, "last_in_lockstep_timestamp_seconds") == 1_700_000_000


def test_the_textfile_of_a_single_look_has_no_counters(tmp_path: Path) -> None:
    metrics = Metrics(LABELS)
    metrics.record(outcome(0.0003))
    file = tmp_path / "verify.prom"
    metrics.write(file)
    samples = parsed(file.read_text(encoding="utf-8"))
    assert value(samples, "verdict", verdict="in_lockstep") == 1
    assert not [name for name, _ in samples if "looks" in name or "interval" in name]
    assert [path.name for path in tmp_path.iterdir()] == ["verify.prom"]
    with pytest.raises(UserError, match=r"--metrics-file .*absent/verify.prom cannot be written: No such file"):
        metrics.write(tmp_path / "absent/verify.prom")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--metrics 127.0.0.1:{port}: Address already in use"):
            Metrics(LABELS).serve("127.0.0.1", port)


def test_addresses() -> None:
    assert gauge.address("9877") == ("127.0.0.1", 9877)
    assert gauge.address("0.0.0.0:9877") == ("0.0.0.0", 9877)
    assert gauge.address("[::1]:9877") == ("::1", 9877)
    for text in ("", "x", "9877x", "0", "65536", "127.0.0.1:", "-1", "٣"):
        with pytest.raises(UserError, match="give a port, such as 9877, or ADDRESS:PORT"):
            gauge.address(text)


def test_the_rules_for_alerts_ask_for_metrics_that_are_there() -> None:
    metrics = Metrics(LABELS, every=3600)
    port = metrics.serve("127.0.0.1", free_port())
    metrics.record(outcome(1.5, weights=FAILED))
    known = {name for name, _ in scraped(port)}
    groups = yaml.safe_load((ROOT / "configs/monitoring/verify-rules.yaml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 3
    for rule in rules:
        names = set(re.findall(r"lockstep_\w+", rule["expr"] + rule["annotations"]["summary"]))
        assert names and names <= known, rule
