"""What the gate makes of the workers' answers; the workers themselves answer in tests/e2e/test_module_count.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.edits import edit_tensors

from lockstep.endpoint import protocol
from lockstep.errors import UserError
from lockstep.serving import gate_modules
from lockstep.serving.gate_findings import Findings
from lockstep.serving.probe import Server

LAYER = "base_model.model.model.layers.0"
Q, EXPERTS = f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp.experts"
COUNT, RANK = 4, 2  # experts of the layer, rank of each


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """One linear layer, one parameter of four experts, of which training has reached all but the last."""
    b = torch.ones(8, RANK, COUNT)
    b[..., -1] = 0
    save_file(
        {
            f"{Q}.lora_A.weight": torch.ones(RANK, 8), f"{Q}.lora_B.weight": torch.ones(16, RANK),
            f"{EXPERTS}.lora_A.weight": torch.ones(COUNT * RANK, 6), f"{EXPERTS}.lora_B.weight": b.flatten(1),
        },
        tmp_path / "adapter_model.safetensors",
    )  # fmt: skip
    return tmp_path


def judged(adapter: Path, monkeypatch: pytest.MonkeyPatch, *workers: dict[str, Any]) -> Findings:
    """What the gate finds where vLLM's workers say this about the adapter `r`."""

    def ask(self: Server, path: str, *_: Any) -> Any:
        assert path == protocol.MODULES
        return json.loads(json.dumps({"adapters": {"r": workers, "other": []}}))

    monkeypatch.setattr(Server, "ask", ask)
    findings = Findings()
    gate_modules.check(Server("http://127.0.0.1:9/v1", "s"), "r", adapter, findings)
    return findings


WHOLE = [True, True, True, False]  # as in the file
CASES: dict[str, tuple[list[dict[str, Any]], int, str]] = {
    # what the workers say, how many of two modules are in effect, what the gate says
    "all of it": ([{Q: [True], EXPERTS: WHOLE}], 2, ""),
    "two that share each layer": ([{Q: [True], EXPERTS: WHOLE}] * 2, 2, ""),
    "one layer each, in a pipeline": ([{Q: [True], EXPERTS: []}, {Q: [], EXPERTS: WHOLE}], 2, ""),
    "half of the experts each": (
        [{Q: [True], EXPERTS: [True, True, None, None]}, {Q: [True], EXPERTS: [None, None, True, False]}], 2, "",
    ),
    "no layer of that name": ([{Q: [], EXPERTS: WHOLE}], 1, f"{Q} (vLLM has no layer of this name)"),
    "an empty buffer": ([{Q: [False], EXPERTS: WHOLE}], 1, f"{Q} (its buffer is empty)"),
    "an empty buffer in one of two workers": (
        [{Q: [True], EXPERTS: WHOLE}, {Q: [False], EXPERTS: WHOLE}], 1, f"{Q} (its buffer is empty)",
    ),
    "one expert dropped": ([{Q: [True], EXPERTS: [True, False, True, False]}], 1, f"{EXPERTS} (empty for 1 of 4 experts)"),
    "an expert that no worker has": (
        [{Q: [True], EXPERTS: [None, True, True, None]}], 1, f"{EXPERTS} (empty for 1 of 4 experts)",
    ),
    "a file of other modules": ([{"x": [True]}], 0, f"0 of the adapter's 2 modules are in effect in vLLM: {EXPERTS}"),
    "no adapter at all": ([], 0, "take --serve.mode merged"),
}  # fmt: skip


@pytest.mark.parametrize(("workers", "active", "says"), CASES.values(), ids=CASES.keys())
def test_modules_are_counted_against_the_file(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, workers: list[dict[str, Any]], active: int, says: str
) -> None:
    findings = judged(adapter, monkeypatch, *workers)
    assert findings.report == {"modules_active": active, "modules_expected": 2}
    assert bool(findings.reasons) == (active < 2) and (not says or says in findings.reasons[0])
    assert all("\n" not in reason for reason in findings.reasons)


def test_an_adapter_without_modules_or_file_does_not_pass(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({"x": torch.ones(1)}, file)
    assert "0 of the adapter's 0 modules" in judged(adapter, monkeypatch, {}).reasons[0]
    file.write_bytes(b"{")
    with pytest.raises(UserError, match="cannot be read"):
        judged(adapter, monkeypatch, {})


@pytest.fixture
def account(adapter: Path) -> Path:
    """The same with its config, and the account of weights that training wrote."""
    options = {"r": RANK, "lora_alpha": 4, "peft_type": "LORA", "target_parameters": ["mlp.experts.down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(options))
    q, experts = (name.removeprefix("base_model.model.") for name in (f"{Q}.weight", f"{EXPERTS}.down_proj"))
    reasons = {q: "adapter", experts: "adapter", "model.norm.weight": "norm, bias or other vector"}
    coverage = {"reasons": reasons, "adapted_experts": {experts: COUNT - 1}}
    (adapter / "coverage.json").write_text(json.dumps(coverage))
    return adapter


def without_a_module(tensors: dict[str, Any]) -> None:
    for letter in "AB":
        del tensors[f"{Q}.lora_{letter}.weight"]


def without_an_expert(tensors: dict[str, Any]) -> None:
    tensors[f"{EXPERTS}.lora_B.weight"].view(-1, RANK, COUNT)[..., 1] = 0


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (without_a_module, "lacks 1 of the 2 updates that were trained, model.layers.0.self_attn.q_proj.weight"),
        (without_an_expert, "changes 2 of the 3 experts that were trained in model.layers.0.mlp.experts.down_proj"),
    ],
)
def test_an_adapter_that_holds_less_than_was_trained_is_seen_in_its_files(account: Path, cut: Any, says: str) -> None:
    assert gate_modules.foresee(account) == ""
    edit_tensors(account / "adapter_model.safetensors", cut)
    reason = gate_modules.foresee(account)
    assert says in reason and "\n" not in reason


def test_modules_are_expected_as_training_adapted_them(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_tensors(account / "adapter_model.safetensors", without_a_module)
    findings = judged(account, monkeypatch, {EXPERTS: WHOLE})
    assert findings.report == {"modules_active": 1, "modules_expected": 2} and "was cut" in findings.reasons[0]


def test_an_adapter_from_before_there_was_an_account_is_taken_by_its_file(adapter: Path) -> None:
    assert gate_modules.foresee(adapter) == ""
