"""What vLLM's real workers hold of an adapter: whole ones, and ones of which vLLM drops a part without a word."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny, vllm_workers
from support.edits import edit_tensors
from support.serving import Home, finished_run, refused, report

from lockstep.artifacts import filenames
from lockstep.serving import gate_modules
from lockstep.serving.gate_findings import Findings
from lockstep.serving.probe import Server

pytestmark = pytest.mark.e2e
Change = Callable[[dict[str, Any]], object]


def renamed(old: str, new: str) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def without(*modules: str) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.split(".lora_")[0].endswith(modules)]:
            del tensors[name]

    return change


def emptied(module: str) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if f"{module}.lora_B" in name]:
            tensors[name].zero_()

    return change


SPOILT: dict[str, tuple[Change, int, str]] = {
    # how the adapter that vLLM loads differs from the one that the gate knows, modules in effect of 14, what it says
    "as it is": (lambda _: None, 14, ""),
    "a wrapper's prefix": (renamed(".model.layers.", ".model.language_model.layers."), 0, "0 of the adapter's 14 modules"),
    "of other layers": (renamed(".layers.1.", ".layers.9."), 7, "model.layers.1.mlp.down_proj (vLLM has no layer of this name)"),
    "three of seven": (without("q_proj", "v_proj", "up_proj", "down_proj"), 6, "6 of the adapter's 14 modules"),
    "one of three that are packed": (without("k_proj"), 12, "model.layers.0.self_attn.k_proj"),
    "zeros": (emptied("layers.1.self_attn.v_proj"), 13, "model.layers.1.self_attn.v_proj (its buffer is empty)"),
}  # fmt: skip


def test_what_vllm_leaves_out_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine that has loaded all of them."""
    base, whole = tiny.model(tmp_path / "base"), tmp_path / "whole"
    tiny.peft_adapter(whole, base)
    for name, (change, *_) in SPOILT.items():
        shutil.copytree(whole, tmp_path / name)
        edit_tensors(tmp_path / name / filenames.ADAPTER_WEIGHTS, change)
    workers = vllm_workers.answers(base, *(tmp_path / name for name in SPOILT))
    monkeypatch.setattr(Server, "ask", lambda *_: {"adapters": workers})
    for name, (_, active, says) in SPOILT.items():
        findings = Findings()
        gate_modules.check(Server("http://127.0.0.1:9/v1", ""), name, whole, findings)
        assert findings.report == {"modules_active": active, "modules_expected": 14}, name
        assert bool(findings.reasons) == (active < 14) and (not says or says in findings.reasons[0]), name


def test_a_server_that_takes_only_some_of_the_modules_stays_closed(tmp_path: Path) -> None:
    """`gate_proj` and `up_proj` are one layer in vLLM."""
    home: Home = finished_run(tmp_path)
    code, complaint = refused(
        home,
        "--serve.mode",
        "lora",
        "--serve.vllm_args",
        '{"lora_target_modules": ["o_proj", "gate_proj", "down_proj"]}',
    )
    outcome = report(home)
    assert code == 2 and not outcome["passed"] and (outcome["modules_active"], outcome["modules_expected"]) == (8, 14)
    assert "error: the gate stays shut: 8 of the adapter's 14 modules are in effect in vLLM: " in complaint
    assert "--serve.mode merged" in complaint and complaint.count("\n") <= 2
