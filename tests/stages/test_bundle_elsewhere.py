"""`verify --bundle` as a program, in a home with neither a model nor a run: folders, signatures, and again and again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.programs import ROOT, Ended, free_port, run, script_environment
from support.serving import Home

from lockstep.artifacts import atomic, filenames

KEYS = "openssl genpkey -algorithm ed25519 -out {0}.pem && chmod 600 {0}.pem && openssl pkey -in {0}.pem -pubout -out {0}.pub.pem"


@pytest.fixture(scope="module")
def packed(finished: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed bundle, the public keys of its signer and of another, and the merged model."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    home = finished.copy(tmp_path_factory.mktemp("bundle") / "home")
    folder = tmp_path_factory.mktemp("sent")
    for name in ("key", "other"):
        subprocess.run(KEYS.format(name), shell=True, cwd=folder, check=True, capture_output=True)
    home.stage("bundle.py", "--key", str(folder / "key.pem"))
    shutil.copy(home.run / filenames.BUNDLE, folder)
    shutil.copytree(home.run / "merged", folder / "merged")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, packed: Path) -> Path:
    """What was sent, on another machine."""
    shutil.copytree(packed, tmp_path / "sent")
    return tmp_path / "sent"


def verify(elsewhere: Path, *words: str, **extra: Any) -> Ended:
    words = ("--bundle", filenames.BUNDLE, *words)
    return run(elsewhere, "verify.py", *words, **extra)


def refusal(elsewhere: Path, *words: str) -> str:
    answer = verify(elsewhere, *words)
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1, answer
    return answer.stderr


def test_a_merged_model_that_was_copied_is_proved_without_torch(elsewhere: Path) -> None:
    answer = verify(
        elsewhere, "--merged", "merged", "--public-key", "key.pub.pem", fresh=True, PYTHONPROFILEIMPORTTIME="1"
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines() if line.startswith("import time:")}
    assert "lockstep.verification.bundle" in loaded and not loaded & {"torch", "transformers", "vllm", "datasets"}
    results = atomic.read_json(elsewhere / "outputs/verify/verify.json")
    assert results["verdict"] == "in_lockstep" and not results["proofs"]["adapter"]["applies"]
    assert "every file of weights is the run's" in answer.stdout

    config = elsewhere / "merged/config.json"
    atomic.write_json(config, atomic.read_json(config) | {"rms_norm_eps": 0.1})
    answer = verify(elsewhere, "--merged", "merged")
    assert answer.returncode == 1 and "config.json says another rms_norm_eps than the run's" in answer.stdout


def test_a_tokenizer_that_was_saved_again_is_compared_by_what_it_does(elsewhere: Path) -> None:
    """With the tokenizer in the bundle: other bytes of the same tokenizer pass, two words that changed places do not."""
    file = elsewhere / "merged/tokenizer.json"
    content = atomic.read_json(file)
    file.write_text(json.dumps(content))
    answer = verify(elsewhere, "--merged", "merged")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    words = content["model"]["vocab"]
    (first, low), (second, high) = list(words.items())[-2:]
    words |= {first: high, second: low}
    file.write_text(json.dumps(content))
    answer = verify(elsewhere, "--merged", "merged")
    assert answer.returncode == 1 and "failed (other_tokens)" in answer.stdout


def test_what_was_changed_or_signed_by_somebody_else_is_refused(elsewhere: Path) -> None:
    merged = ("--merged", "merged")
    assert "is signed with the key" in refusal(elsewhere, *merged, "--public-key", "other.pub.pem")
    assert "is a private key, which stays" in refusal(elsewhere, *merged, "--public-key", "key.pem")
    file = elsewhere / filenames.BUNDLE
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    refusal(elsewhere, *merged)
    file.write_bytes(content)
    (elsewhere / "base").mkdir()
    assert "what was trained stands in the bundle" in refusal(elsewhere, *merged, "--base", "base")
    assert "nothing to verify" in refusal(elsewhere)


def test_options_of_looking_again_are_checked_before_anything_is_looked_at(elsewhere: Path) -> None:
    merged = ("--merged", "merged")
    assert "--metrics needs --every" in refusal(elsewhere, *merged, "--metrics", "9877")
    assert "--merged absent: there is no such f" in refusal(elsewhere, "--merged", "absent", "--every", "1h")
    assert "give a port, such as 9877" in refusal(elsewhere, *merged, "--every", "1h", "--metrics", "x")
    assert "such as 1h" in refusal(elsewhere, *merged, "--every", "hourly")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "already in use" in refusal(elsewhere, *merged, "--every", "1h", "--metrics", port)


def metrics(port: int) -> dict[str, float]:
    """What Prometheus reads, by name and labels; nothing where nobody answers yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except OSError:
        return {}
    return {
        f"{sample.name}{''.join(f' {value}' for _, value in sorted(sample.labels.items()))}": sample.value
        for family in families
        for sample in family.samples
    }


def wait(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_again_and_again_until_a_signal(elsewhere: Path, how: signal.Signals) -> None:
    """A folder that is right, then spoilt, then unreadable, then right again."""
    port = free_port()
    words = ["--bundle", filenames.BUNDLE, "--merged", "merged", "--every", "1s", "--metrics", str(port)]
    words += ["--metrics-file", "verify.prom", "--public-key", "key.pub.pem"]
    loop = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/verify.py"), *words], cwd=elsewhere, env=script_environment(elsewhere),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    def is_now(verdict: str) -> Callable[[], bool]:
        return lambda: metrics(port).get(f"lockstep_verify_verdict {verdict}") == 1

    file = elsewhere / "merged/generation_config.json"
    content = file.read_text()

    def become(text: str) -> None:
        with atomic.replacing(file) as stream:
            stream.write(text)

    try:
        wait(is_now("in_lockstep"))
        become(json.dumps(json.loads(content) | {"temperature": 0.6}))
        wait(is_now("not_in_lockstep"))
        now = metrics(port)
        assert now["lockstep_verify_proof sampling failed"] == 1 and now["lockstep_verify_proof weights passed"] == 1
        assert now["lockstep_verify_looks_total not_in_lockstep"] >= 1 <= now["lockstep_verify_looks_total in_lockstep"]
        line = 'lockstep_verify_verdict{verdict="not_in_lockstep"} 1.0'
        wait(lambda: line in (elsewhere / "verify.prom").read_text())
        become("{")
        wait(is_now("undecided"))
        wait(lambda: atomic.read_json(elsewhere / "outputs/verify/verify.json")["verdict"] == "undecided")
        become(content)
        wait(is_now("in_lockstep"))
        wait(lambda: atomic.read_json(elsewhere / "outputs/verify/verify.json")["verdict"] == "in_lockstep")
    finally:
        os.kill(loop.pid, how)
        output, complaints = loop.communicate(timeout=30)
    assert loop.returncode == 0 and not complaints, complaints
    verdicts = [line.split("  ")[1] for line in output.splitlines()]
    changes = [verdict for number, verdict in enumerate(verdicts) if number == 0 or verdict != verdicts[number - 1]]
    assert changes == ["in lockstep", "not in lockstep", "undecided", "in lockstep"], output
    assert "generation_config.json sets temperature to 0.6, for which nobody asked" in output


def test_an_endpoint_that_is_down_is_undecided_in_a_loop_and_an_error_by_itself(elsewhere: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert f"{url} cannot be reached" in refusal(elsewhere, "--endpoint", url, "--metrics-file", "verify.prom")
    assert atomic.read_json(elsewhere / "outputs/verify/verify.json")["verdict"] == "undecided"
    text = (elsewhere / "verify.prom").read_text()
    assert 'lockstep_verify_verdict{verdict="undecided"} 1.0' in text and "looks_total" not in text


def test_an_endpoint_that_never_answers_does_not_hold_the_end_up(elsewhere: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        loop = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/verify.py"), "--bundle", filenames.BUNDLE, "--endpoint", url, "--every", "1h"],
            cwd=elsewhere, env=script_environment(elsewhere), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        silent.settimeout(60)
        connection, _ = silent.accept()
        loop.terminate()
        _, complaints = loop.communicate(timeout=10)
        connection.close()
    assert loop.returncode == 0 and not complaints
