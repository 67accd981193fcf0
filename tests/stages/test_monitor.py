"""The monitor, and the files for Prometheus and Grafana, on what a real vLLM said before and after some requests."""

import json
import os
import pty
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Run
from support.misbehaving import Server
from support.programs import ROOT, script_environment
from support.serving import free_port

FILES = ROOT / "configs/monitoring"
BEFORE, AFTER = (
    (ROOT / f"tests/recorded/metrics-{when}.txt").read_text(encoding="utf-8") for when in ("before", "after")
)


def dashboard() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((FILES / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    return panels


def expressions() -> set[str]:
    return {target["expr"] for panel in dashboard() for target in panel["targets"]}


def test_one_line_for_scripts(stage: Run, server: Server) -> None:
    server.metrics = BEFORE
    words = ("--base-url", server.url, "--interval", "0.2")
    answer = stage("monitor.py", "--once", *words)
    assert answer.returncode == 0, answer.stderr
    figures = json.loads(answer.stdout)
    assert figures["output_tokens"] == 0 and figures["ttft"] is None and figures["finished"] == {}


def test_what_is_wrong_is_one_line(stage: Run, server: Server) -> None:
    def error(*words: str, **extra: str) -> str:
        answer = stage("monitor.py", "--once", "--interval", "0.1", *words, **extra)
        assert answer.returncode == 2 and answer.stderr.count("\n") == 1, answer.stderr
        return answer.stderr

    assert "not answering: start it with `make serve CONFIG=" in error("--base-url", "http://127.0.0.1:9/v1")
    assert "ends in /v1" in error("--base-url", server.url + "/x")
    server.gate = False
    assert "being checked" in error("--base-url", server.url)
    server.gate, server.key, server.metrics = True, "sesame", BEFORE
    assert "set LOCKSTEP_API_KEY" in error("--base-url", server.url)
    assert (
        stage(
            "monitor.py", "--once", "--interval", "0.1", "--base-url", server.url, LOCKSTEP_API_KEY="sesame"
        ).returncode
        == 0
    )
    server.key, server.metrics = "", "<html>"
    assert "no vLLM" in error("--base-url", server.url)


def test_the_live_view_shows_the_figures_and_gets_over_a_server_that_went_away(server: Server, tmp_path: Path) -> None:
    server.metrics = BEFORE
    terminal, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/monitor.py"), "--base-url", server.url, "--interval", "0.3"],
        env=script_environment(tmp_path), stdout=theirs, stdin=theirs, cwd=tmp_path,
    )  # fmt: skip
    os.close(theirs)
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        seen, end = "", time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < end, seen
            seen += os.read(terminal, 4096).decode(errors="replace")

    try:
        until("finished   none")
        server.metrics = AFTER
        until(" length")  # requests that ended meanwhile
        server.gate = False
        until("being checked")
        server.gate = True
        until("running 0")
    finally:
        program.terminate()
        program.wait(timeout=10)
        os.close(terminal)


def test_the_files_fit_together() -> None:
    compose = yaml.safe_load((FILES / "compose.yaml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (FILES / source).exists()
        assert service["network_mode"] == "host" and "ports" not in service
    assert "--web.listen-address=127.0.0.1:9090" in compose["services"]["prometheus"]["command"]
    assert compose["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    (source,) = yaml.safe_load((FILES / "grafana-datasource.yaml").read_text(encoding="utf-8"))["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard()} == {source["uid"]}
    places = [panel["gridPos"] for panel in dashboard()]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23


@pytest.mark.skipif(not (shutil.which("prometheus") and shutil.which("promtool")), reason="no prometheus is installed")
@pytest.mark.parametrize("key", ["", "sesame"])
def test_a_real_prometheus_answers_every_question_of_the_dashboard(server: Server, tmp_path: Path, key: str) -> None:
    server.metrics, server.key = BEFORE, key
    at = free_port()
    text = (FILES / "prometheus.yaml").read_text(encoding="utf-8")
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{server.server_address[1]}").replace(
        "scrape_interval: 5s", "scrape_interval: 1s"
    )
    if key:
        text = text.replace("# authorization:", "authorization:").replace("#   credentials_file", "  credentials_file")
        (tmp_path / "api_key").write_text(key)
    file = tmp_path / "prometheus.yaml"
    shutil.copy(FILES / "verify-rules.yaml", tmp_path)
    file.write_text(text)
    for checked in (FILES / "prometheus.yaml", file):
        subprocess.run(["promtool", "check", "config", checked], check=True, capture_output=True)
    program = subprocess.Popen(
        ["prometheus", "--config.file", file, "--storage.tsdb.path", tmp_path / "data", "--web.listen-address", f"127.0.0.1:{at}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait(lambda: values(at, "count_over_time(up[1m]) > 2"))
        server.metrics = AFTER
        time.sleep(3)
        assert values(at, 'up{job="lockstep"}') == [1.0]
        found = {expression: values(at, expression.replace("$__rate_interval", "30s")) for expression in expressions()}
        assert all(found.values()), [expression for expression, got in found.items() if not got]
        rate = found["sum(rate(vllm:generation_tokens_total[$__rate_interval]))"]
        assert rate[0] > 0
        subprocess.run(
            ["promtool", "query", "instant", f"http://127.0.0.1:{at}", "up"], check=True, capture_output=True
        )
    finally:
        program.terminate()
        program.wait(timeout=20)


def values(port: int, expression: str) -> list[float]:
    """What Prometheus' HTTP API says to an expression; nothing while it does not listen."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError:
        raise
    except OSError:
        return []
    return [float(one["value"][1]) for one in result]


def wait(holds: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)
