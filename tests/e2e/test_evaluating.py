"""Stage 05 with the real vLLM: its own servers, one after the other, and a second run in the same table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT, script_environment
from support.serving import finished_run, free_port

pytestmark = pytest.mark.e2e


def test_base_tuned_and_another_run_in_one_table(tmp_path: Path) -> None:
    home = finished_run(tmp_path / "home", base=False)
    second = ("--run", "second")
    home.stage("01_data_collator.py", *second)
    home.stage("02_train_qlora.py", *second, "--train.max_steps", "2", "--train.seed", "7")
    home.stage("03_merge_lora.py", *second)
    words = (*home.words, "--evaluate.runs", "second", "--serve.max_model_len", "512", "--serve.port", str(free_port()))
    command = [sys.executable, str(ROOT / "scripts/05_evaluate.py"), *words]
    answer = subprocess.run(
        command, env=script_environment(home.folder, ACCEL="cpu"), capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    metrics = json.loads((home.run / "eval/metrics.json").read_text(encoding="utf-8"))
    figures = metrics["runs"] | {side: metrics[side] for side in ("base", "tuned")}
    value = {side: measures["perplexity"]["value"] for side, measures in figures.items()}
    assert value["tuned"] < value["second"] < value["base"]  # six steps, two at a lower rate, none
    lines = [
        json.loads(line) for line in (home.run / "eval/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert lines and all({"base", "tuned", "second"} <= line.keys() for line in lines)
    serving = metrics["serving"]["perplexity"]
    assert serving["served"] == pytest.approx(serving["trained"], rel=0.02)
    assert "second" in (home.run / "eval/report.html").read_text(encoding="utf-8")
