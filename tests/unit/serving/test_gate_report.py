"""The gate's report, as others read it."""

from pathlib import Path

import pytest
from support import homes

from lockstep.artifacts import manifest
from lockstep.artifacts.stage import Stage
from lockstep.serving import gate_report


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.settle(monkeypatch, tmp_path)


def test_the_outcome_leaves_out_what_was_not_measured(home: Path) -> None:
    folder = home / "outputs/r/serve"
    folder.mkdir(parents=True)
    base = {"prompts": 43, "logprob_gap": None, "adapter_effect": None, "stop_rate": None}
    label = gate_report.write(folder, base)
    assert gate_report.outcome(folder) == f"in lockstep: 43 golden prompts are the tokens of training ({label})"
    earlier = base | {"logprob_gap": 0.00123}
    gate_report.write(folder, earlier)
    assert "log-probabilities within 0.0012 nats a token of the trained model's" in gate_report.outcome(folder)
    more = {"kl": 0.00123, "kl_bound": 0.01, "adapter_effect": 1.004, "stop_rate": 0.5}
    gate_report.write(folder, earlier | more)
    assert gate_report.outcome(folder) == (
        "in lockstep: 43 golden prompts are the tokens of training, 0.0012 nats a token from the trained model (KL, "
        f"bound 0.0100), effect of the training 1.00 of 1, 50% of answers end by themselves ({label})"
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_a_damaged_report_is_none(home: Path, text: str) -> None:
    (home / "gate_report.json").write_text(text)
    assert gate_report.read(home) is None and "gone, or damaged" in gate_report.outcome(home)


def test_what_was_made_again_since_it_was_served_is_named(home: Path) -> None:
    folder = home / "outputs/r/merged"
    with Stage("merge", folder, {}, []).writing() as work:
        (work / "a").write_text("a")
    digest = manifest.read(folder).digest
    assert gate_report.replaced({"outputs/r/merged": digest}) == []
    served = {"outputs/r/merged": "0" * 64, "outputs/r/adapter": digest}  # of another time, and gone
    assert gate_report.replaced(served) == ["outputs/r/merged", "outputs/r/adapter"]
