"""The benchmark of serving: its table, the best flags and the picture, from recorded measurements."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.programs import ROOT


def measured(mode: str, flags: str, concurrency: int, speed: float, failures: int = 0) -> dict[str, Any]:
    times = {f"{name}_{p}": 10.0 for name in ("ttft_ms", "itl_ms", "latency_ms") for p in ("p50", "p99")}
    return {"mode": mode, "flags": flags, "concurrency": concurrency, "output_tokens_per_second": speed,
            "requests": 8, "failures": failures, "seconds": 1.0, **times}  # fmt: skip


def test_the_best_flags_are_those_with_most_tokens_and_no_failure(tmp_path: Path) -> None:
    measurements = [
        measured("merged", "", 1, 30.0), measured("merged", "", 16, 200.0),
        measured("merged", "--serve.enforce_eager false", 1, 40.0), measured("merged", "--serve.enforce_eager false", 16, 300.0),
        measured("merged", "--serve.max_num_seqs 4", 16, 900.0, failures=1),
        measured("lora", "", 1, 20.0), measured("lora", "", 16, 90.0),
    ]  # fmt: skip
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"output_tokens": 64, "cores": 2, "measurements": measurements}))
    command = [sys.executable, str(ROOT / "benchmarks/serve.py"), "--report", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    lines = shown.splitlines()
    assert (
        "best for merged: --serve.enforce_eager false: 300.0 output tokens/s with 16 clients, 1.50 × as configured"
        in lines
    )
    assert "best for lora: as configured: 90.0 output tokens/s with 16 clients, 1.00 × as configured" in lines
    assert sum(line.startswith(("merged ", "lora ")) for line in lines) == len(measurements)
    picture = file.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_help_names_what_it_writes() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/serve.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "bench.json" in shown and "--concurrency" in shown
