"""The benchmark of the gate's sensitivity: its rungs, and on a tiny run what they change and what sees it on disk."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import serving
from support.programs import ROOT, script_environment

GATE = str(ROOT / "benchmarks/gate.py")
KINDS = {"rows", "vocabulary", "long", "chats"}


def test_there_are_rungs_of_both_kinds_in_both_modes() -> None:
    shown = subprocess.run([sys.executable, GATE, "--list"], capture_output=True, text=True, check=True, timeout=120)
    rungs = [line.split(maxsplit=1) for line in shown.stdout.splitlines()]
    assert all(len([rung for rung in rungs if rung[0] == mode]) >= 30 for mode in ("merged", "lora"))
    assert {("merged", "scale 0.9"), ("lora", "scale 0.9"), ("merged", "window of 256")} <= {*map(tuple, rungs)}


@pytest.mark.slow
def test_rungs_change_what_they_say_and_the_disk_shows_it(tmp_path: Path) -> None:
    home = serving.finished_run(tmp_path / "home")
    rungs = [
        "as trained", "in two files", "scale 0.8", "noise 0.1", "two frequent rows swapped", "template: a condition",
        "rope theta × 0.1", "window of 256", "decoder of other digits", "one end token less", "sampling set",
    ]  # fmt: skip
    only = [word for rung in rungs for word in ("--only", rung)]
    words = [*home.words, "--serve.max_model_len", "512"]
    command = [sys.executable, GATE, *words, *only, "--without-server", "--json", str(tmp_path / "ladder.json")]
    ended = subprocess.run(command, env=script_environment(home.folder), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads((tmp_path / "ladder.json").read_text(encoding="utf-8"))
    assert result["missed_above_0.01"] == result["refused_below_0.001"] == []
    assert (result["clean_runs"], result["clean_refused"], result["named_share"]) == (0, 0, 1.0)
    lines: dict[tuple[str, str], dict[str, Any]] = {
        (line["name"], line["mode"]): line for line in result["corruptions"]
    }
    assert {rung for rung, _ in lines} == {*rungs}
    assert all(
        line["true_kl"].keys() == KINDS and line["caught"] != line["is_right"]
        for line in lines.values()
        if line["mode"] == "merged"
    )
    for mode in ("merged", "lora"):
        rounding = max(lines["as trained", mode]["true_kl"].values())
        assert rounding < 1e-5
        for rung in ("scale 0.8", "noise 0.1", "two frequent rows swapped", "rope theta × 0.1"):
            assert max(lines[rung, mode]["true_kl"].values()) > 10 * rounding, (rung, mode)
    # whatever is not the adapter itself can be made again from base and adapter
    assert not lines["scale 0.8", "lora"]["caught"] and lines["two frequent rows swapped", "lora"]["caught"]
    condition = lines["template: a condition", "merged"]
    assert (
        condition["true_kl"]["chats"] > 0
        and condition["true_kl"]["rows"] == 0
        and condition["named"] == ["other_template"]
    )
    window = lines["window of 256", "merged"]["true_kl"]
    assert window["rows"] == pytest.approx(lines["as trained", "merged"]["true_kl"]["rows"])
    assert window["long"] > lines["as trained", "merged"]["true_kl"]["long"]
    # the run itself is as it was, and another climb finds all lines
    again = subprocess.run(command, env=script_environment(home.folder), capture_output=True, text=True, check=False)
    assert again.returncode == 0 and not list((home.run / "bench/gate/outputs").glob("scale*"))
