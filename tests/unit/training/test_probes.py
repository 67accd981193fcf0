"""What is tried before a training: short rows of harmless tokens, on real classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import families, rounding, tiny
from transformers import AutoModelForCausalLM

from lockstep.data.collator import IGNORE, Collator
from lockstep.training import loss, probes


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)


@pytest.mark.parametrize("name", ["Qwen3-VL", "Gemma 3", "Gemma 4"])
def test_no_row_holds_a_token_that_stands_for_an_image(name: str) -> None:
    network = families.network(families.ALL[name])
    tokens = {token for variant in (0, 1) for row in probes.probe_rows(network, variant) for token in row["input_ids"]}
    wide = set(probes.probe_tokens(network, 400))
    values = families.ALL[name].values
    special = {value for key, value in values.items() if key.endswith(("token_id", "token_index"))}
    assert len(special) > 3 and not special & (tokens | wide)
    assert len(tokens) > 40


def test_rows_begin_alike_and_the_middle_one_is_the_same_beside_others(tiny_model: Path) -> None:
    network = plain(tiny_model)
    first, second = probes.probe_rows(network), probes.probe_rows(network, 1)
    assert first[1] == second[1] and first[0] != second[0] and first[2] != second[2]
    assert [len(row["input_ids"]) for row in first] == [len(row["input_ids"]) for row in second]
    beginnings = {tuple(row["input_ids"][: probes.SHARED]) for row in first + second}
    assert len(beginnings) == 1
    for row in first:
        assert row["labels"] == [IGNORE] * (probes.SHARED + 1) + row["input_ids"][probes.SHARED + 1 :]
    assert len(probes.probe_rows(network, length=50)[0]["input_ids"]) == probes.SHARED + 50


def test_the_loss_in_pieces_is_the_loss(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    monkeypatch.setitem(loss.LOGITS, "cpu", 512 * 16)  # sixteen positions at a time
    assert not probes.head_is_plain(network)  # it is trained: left whole
    network.get_output_embeddings().weight.requires_grad_(False)
    assert probes.head_is_plain(network)
    batch = Collator(0)(probes.probe_rows(network, length=40))

    def measured(model: Any, in_pieces: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        total, _ = loss.loss_sum(model, batch, in_pieces)
        total.backward()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        assert gradients
        return gradients | {"loss": total.detach()}

    exact = measured(rounding.in_float64(network), in_pieces=False)
    rounding.assert_as_exact(measured(network, in_pieces=True), measured(network, in_pieces=False), exact)


@pytest.mark.parametrize(
    ("kind", "changes", "is_plain"),
    [
        ("gemma2", {"final_logit_softcapping": 0.05, "query_pre_attn_scalar": 32}, False),
        ("gemma2", {"final_logit_softcapping": 1e6, "query_pre_attn_scalar": 32}, False),  # below what a loss shows
        ("granite", {"logits_scaling": 1.0001}, False),
        ("granite", {"logits_scaling": 1.0}, True),
        ("cohere2", {"logit_scale": 0.999}, False),
        ("qwen3", {}, True),
    ],
)
def test_logits_that_are_not_the_output_layers_are_known(
    tmp_path: Path, kind: str, changes: dict[str, float], is_plain: bool
) -> None:
    network = plain(tiny.model(tmp_path / "m", kind=kind, **changes))
    assert probes.head_is_plain(network) == is_plain


@pytest.mark.parametrize(("name", "routed"), [("Llama 3", False), ("Mixtral", True), ("Gemma 4 MoE", True)])
def test_models_with_experts_are_known(name: str, routed: bool) -> None:
    assert probes.has_experts(families.network(families.ALL[name])) == routed
