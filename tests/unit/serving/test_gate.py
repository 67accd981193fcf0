"""What the gate makes of its proofs' findings; the gate itself asks the real vLLM in tests/e2e and tests/faults."""

import json
from pathlib import Path

import pytest
from support import tiny

from lockstep.serving import gate, gate_log_probs, gate_tokens, gate_vocabulary
from lockstep.serving.gate import Claim
from lockstep.serving.gate_bounds import Bounds
from lockstep.serving.probe import Server


def leave_to_the_real_server(monkeypatch: pytest.MonkeyPatch, *proofs: str) -> None:
    """Proofs that need a server's answers, where those are not at stake."""
    monkeypatch.setattr(gate_vocabulary, "check", lambda *_: None)
    for proof in ("template_of", "check_row_prompts", *proofs):
        monkeypatch.setattr(gate_log_probs if proof == "check" else gate_tokens, proof, lambda *_: None)


@pytest.mark.parametrize(("mode", "passes"), [("merged", False), ("base", True)])
def test_a_bound_on_stops_is_the_tuned_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, passes: bool
) -> None:
    (tmp_path / "contract.json").write_text(json.dumps({"conversations": [], "stop_ids": []}))
    row = {"input_ids": [1] * 9, "start": 5, "base": None}
    (tmp_path / "reference.json").write_text(json.dumps({"rows": [row], "golden": []}))
    leave_to_the_real_server(monkeypatch, "check_prompts", "check_stops", "check")
    asked: list[list[int]] = []

    def complete(self: Server, model: str, prompt: list[int], **_: object) -> dict[str, str]:
        asked.append(prompt)
        return {"finish_reason": "length"}

    monkeypatch.setattr(Server, "complete", complete)
    server = Server("http://127.0.0.1:9/v1", "s")
    claim = Claim(mode, {"r": (tmp_path, tmp_path)}, None, Bounds(None, None, 0.9, 64, 512))
    report = gate.prove(server, claim)
    assert report["passed"] == passes and report["stop_rate"] == 0 and asked == [[1] * 5]


def test_a_length_into_which_no_held_out_row_fits_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "contract.json").write_text(json.dumps({"conversations": [], "stop_ids": []}))
    (tmp_path / "reference.json").write_text(json.dumps({"rows": [{"input_ids": [1] * 99, "start": 98}], "golden": []}))
    leave_to_the_real_server(monkeypatch, "check_prompts", "check_stops")
    claim = Claim("merged", {"r": (tmp_path, tmp_path)}, None, Bounds(None, None, None, 64, 512))
    report = gate.prove(Server("http://127.0.0.1:9/v1", "s"), claim)
    assert report["reasons"] == ["no held-out row fits into --serve.max_model_len 64: raise it"]
    assert report["named"] == "too_short" and not report["passed"]


@pytest.mark.parametrize(("mode", "refused"), [("lora", True), ("merged", True), ("base", False)])
def test_an_adapter_that_was_cut_is_refused_before_a_start(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, refused: bool
) -> None:
    monkeypatch.setattr(
        gate_tokens, "foresee", lambda *_: {"prompts": 30, "token_mismatches": 0, "reasons": [], "named": None}
    )
    tiny.peft_adapter(tmp_path, tiny_model, target_modules=["q_proj"])
    names = [f"model.layers.{layer}.self_attn.{kind}_proj.weight" for layer in (0, 1) for kind in ("q", "v")]
    (tmp_path / "coverage.json").write_text(json.dumps({"reasons": dict.fromkeys(names, "adapter")}))
    foreseen = gate.foresee(Claim(mode, {"r": (tmp_path, tmp_path)}, None, Bounds(None, None, None, 64, 512)))
    assert (foreseen is not None) == refused
    if foreseen:
        assert "lacks 2 of the 4 updates that were trained" in foreseen["reasons"][0] and foreseen["prompts"] == 30
        assert foreseen["named"] == "partial"
