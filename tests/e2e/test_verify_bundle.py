"""A bundle elsewhere, held against the real vLLM: the run's own model, another run's, one that dies and comes back."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import tiny
from support.programs import ROOT, Ended, free_port, run, script_environment
from support.serving import Home, finished_run, served

from lockstep.artifacts import atomic, filenames

pytestmark = pytest.mark.e2e
PEAKED = partial(tiny.model, initializer_range=0.3)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A run whose model is not as good as undecided everywhere, so that draws of its tokens tell how they are drawn."""
    home = finished_run(tmp_path_factory.mktemp("bundle") / "home", base=False, model=PEAKED)
    home.stage("bundle.py")
    return home


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A run on the same base and rows that was trained otherwise."""
    home = finished_run(tmp_path_factory.mktemp("other") / "home", "--train.seed", "7", base=False, model=PEAKED)
    home.stage("bundle.py")
    return home


def verify(elsewhere: Path, *words: str, **extra: str) -> Ended:
    """The program where there is neither a model nor a run."""
    elsewhere.mkdir(exist_ok=True)
    return run(elsewhere, "verify.py", "--json", str(elsewhere / "verify.json"), *words, fresh=True, **extra)


def metrics(port: int) -> dict[str, float]:
    """What Prometheus would read, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            f"{sample.name}{''.join(f' {value}' for _, value in sorted(sample.labels.items()))}": sample.value
            for family in families
            for sample in family.samples
        }


def wait(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.3)


def test_the_runs_own_model_passes_and_another_runs_does_not(packed: Home, other: Home, tmp_path: Path) -> None:
    port, gauge = free_port(), free_port()
    bundles = {name: str(home.run / filenames.BUNDLE) for name, home in (("own", packed), ("other", other))}
    url = f"http://127.0.0.1:{port}/v1"
    with served(packed, "--serve.port", str(port)):
        own = ("--bundle", bundles["own"], "--endpoint", url)
        answer = verify(tmp_path / "own", *own, PYTHONPROFILEIMPORTTIME="1")
        assert answer.returncode == 0, answer.stdout + answer.stderr
        loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
        assert "tokenizers" in loaded and "torch" not in loaded
        proofs = atomic.read_json(tmp_path / "own/verify.json")["proofs"]
        assert {proof["status"] for proof in proofs.values()} == {"passed"}
        assert proofs["weights"]["figures"]["endpoint_kl_trained"] < 0.01
        answer = verify(tmp_path / "other", "--bundle", bundles["other"], "--endpoint", url)
        assert answer.returncode == 1, answer.stdout + answer.stderr
        assert atomic.read_json(tmp_path / "other/verify.json")["proofs"]["weights"]["status"] == "failed"
        loop = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/verify.py"), "--bundle", bundles["own"], "--endpoint", url,
             "--every", "2s", "--metrics", str(gauge), "--json", str(tmp_path / "loop/verify.json")],
            env=script_environment(tmp_path), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait(lambda: answers(gauge).get("lockstep_verify_verdict in_lockstep") == 1)
        assert metrics(gauge)["lockstep_verify_kl_nats"] < 0.01
    try:
        wait(lambda: metrics(gauge)["lockstep_verify_verdict undecided"] == 1)  # the server is gone
        good = metrics(gauge)["lockstep_verify_last_in_lockstep_timestamp_seconds"]
        assert time.time() - 300 < good < time.time()
        assert atomic.read_json(tmp_path / "loop/verify.json")["verdict"] == "undecided"
        with served(packed, "--serve.port", str(port)):
            wait(lambda: metrics(gauge)["lockstep_verify_verdict in_lockstep"] == 1)
            assert metrics(gauge)["lockstep_verify_last_in_lockstep_timestamp_seconds"] > good
            assert atomic.read_json(tmp_path / "loop/verify.json")["verdict"] == "in_lockstep"
    finally:
        os.kill(loop.pid, signal.SIGTERM)
        output, complaints = loop.communicate(timeout=60)
    assert loop.returncode == 0 and not complaints, complaints
    verdicts = [line.split("  ")[1] for line in output.splitlines()]
    changes = [verdict for number, verdict in enumerate(verdicts) if number == 0 or verdict != verdicts[number - 1]]
    assert changes[:1] == ["in lockstep"] and "undecided" in changes and "not in lockstep" not in changes, output


def answers(port: int) -> dict[str, float]:
    """As `metrics`, or nothing where the program has not started to answer."""
    try:
        return metrics(port)
    except OSError:
        return {}
