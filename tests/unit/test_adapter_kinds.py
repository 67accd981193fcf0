"""Kinds of adapters that people have, each made by PEFT or spoilt on disk: how it is served, or why it is refused.

Those that merge are merged, too, and the result computes what PEFT computes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import rounding, tiny
from support.edits import edit_tensors

from lockstep.artifacts import filenames
from lockstep.errors import UserError
from lockstep.merging import merge, serving_route
from lockstep.model import networks

LINEAR = "all-linear"
HEADS = ["embed_tokens", "lm_head"]


def by_peft(folder: Path, base: Path, more: int = 0, **changes: Any) -> torch.nn.Module:
    """An adapter as PEFT saves it, with what a merge needs beside it; returns the trained model, in float32."""
    made: torch.nn.Module = tiny.peft_adapter(folder, base, more, **changes)
    tiny.tokenizer().save_pretrained(folder)
    (folder / "contract.json").write_text("{}\n")
    return made


MERGED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # kind: (the base, the adapter, why it is served merged; or the rank that vLLM is started with)
    "plain": ({}, {}, "8"),
    "rank 24": ({}, {"r": 24}, "32"),
    "rsLoRA": ({}, {"use_rslora": True}, "8"),
    "ranks and alphas of their own": ({}, {"rank_pattern": {"q_proj": 40}, "alpha_pattern": {"up_proj": 3}}, "64"),
    "two targets, untied": ({"tied": False}, {"target_modules": ["q_proj", "v_proj"]}, "8"),
    "gaussian start": ({}, {"init_lora_weights": "gaussian"}, "8"),
    "rank above vLLM's": ({}, {"r": 600, "target_modules": ["q_proj"]}, "rank 600, and vLLM serves up to 512"),
    "DoRA": ({}, {"use_dora": True}, "it is DoRA"),
    "modules_to_save": ({"tied": False}, {"modules_to_save": ["lm_head"]}, "lm_head.weight whole"),
    "biases": ({"kind": "qwen2"}, {"bias": "all"}, "bias whole"),
    "bias asked for, none there": ({}, {"bias": "all"}, "bias all"),
    "head": ({"tied": False}, {"target_modules": ["q_proj", "lm_head"]}, "lm_head.weight whole"),
    "embedding": ({}, {"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens.weight whole"),
    "embedding, untied": ({"tied": False}, {"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens.weight whole"),
    "extra tokens, tied": ({}, {"more": 8}, "whole"),
    "extra tokens, untied": ({"tied": False}, {"more": 8}, "whole"),
    "extra tokens, embeddings trained": ({}, {"more": 8, "modules_to_save": HEADS}, "whole"),
    "extra tokens, untied, embeddings trained": ({"tied": False}, {"more": 8, "modules_to_save": HEADS}, "whole"),
    "extra tokens, rows trained": ({}, {"more": 8, "trainable_token_indices": [3, 512, 519]}, "whole"),
    "extra tokens, embedding targeted": ({}, {"more": 8, "target_modules": ["q_proj", "embed_tokens"]}, "whole"),
    "rows trained, tied": ({}, {"trainable_token_indices": [1, 2]}, "rows of an embedding"),
    "rows trained, untied": (
        {"tied": False}, {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]}}, "rows of an embedding"
    ),
    "a base that vLLM is not known to serve adapters on": ({"kind": "cohere"}, {"target_modules": ["q_proj"]}, "adapters of Cohere"),
    "a base of transformers' own class": ({"kind": "olmo2"}, {"target_modules": ["q_proj"]}, "8"),
    "a layer that vLLM packs otherwise": ({"kind": "glm4"}, {}, "gate_up_proj, where vLLM takes no adapter"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("base", "changes", "wanted"), MERGED.values(), ids=MERGED.keys())
def test_each_kind_has_its_route_and_merges_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], changes: dict[str, Any], wanted: str
) -> None:
    folder = tiny.model(tmp_path / "base", **base)
    network = by_peft(tmp_path / "adapter", folder, **changes)
    route = serving_route.inspect(tmp_path / "adapter", folder)
    if wanted.isdigit():
        assert (route.mode, route.max_lora_rank) == ("lora", int(wanted))
    else:
        assert (route.mode, route.max_lora_rank) == ("merged", None) and wanted in route.reason
    monkeypatch.setattr(merge, "DTYPE", torch.float32)
    out = networks.load(tiny.merged(folder, tmp_path / "adapter", tmp_path / "out"), torch.float32, "cpu")
    ids, exact = torch.arange(10, 512 + changes.get("more", 0), 11)[None], rounding.in_float64(network)
    with torch.no_grad():
        ours, theirs, reference = (model(input_ids=ids).logits for model in (out, network, exact))
    rounding.assert_as_exact({"logits": ours}, {"logits": theirs}, {"logits": reference})
    assert out.config.vocab_size == 512 + changes.get("more", 0)
    if base.get("tied", True) and "embed_tokens" in changes.get("target_modules", ()):
        return  # PEFT's own merge changes the head with the embedding, which training did not
    with torch.no_grad():  # and what PEFT itself makes of it, tensor by tensor
        pefts, in_double = (model.merge_and_unload().state_dict() for model in (network, exact))
    merged = out.state_dict()
    names = merged.keys()
    rounding.assert_as_exact(merged, {name: pefts[name] for name in names}, {name: in_double[name] for name in names})


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    edit_tensors(folder / filenames.ADAPTER_WEIGHTS, change)


def rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def zero(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


Q = "base_model.model.model.layers.0.self_attn.q_proj"
REFUSED: dict[str, tuple[dict[str, Any], Callable[[dict[str, torch.Tensor]], object] | None, str]] = {
    "no prefix": ({}, rename("base_model.model.", ""), r"PEFT's names begin with base_model\.model\."),
    "a prefix twice": ({}, rename("base_model.model.", "base_model.model.base_model.model."), "belongs to another base"),
    "a prefix of a multimodal model": ({}, rename("model.layers", "language_model.model.layers"), "another base"),
    "zeroed": ({}, zero, "has no effect on"),
    "half of a pair": ({}, lambda t: t.pop(f"{Q}.lora_B.weight"), r"incomplete: .*lora_B\.weight is missing"),
    "empty": ({}, lambda t: t.clear(), "holds no tensors"),
    "an unknown tensor": ({}, lambda t: t.update({f"{Q}.scaler": torch.ones(1)}), r"holds .*scaler, which this merge"),
    "a base with more layers": ({}, rename("layers.1.", "layers.7."), "another base: .*layers.7"),
    "no matrix": ({}, lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4)}), "that are no matrices"),
    "PiSSA, not converted": ({"init_lora_weights": "pissa"}, None, "save it again with PEFT's path_initial_model"),
    "OLoRA, not converted": ({"init_lora_weights": "olora"}, None, "save it again with PEFT's path_initial_model"),
    "layers repeated": ({"layer_replication": [[0, 2], [1, 2]]}, None, "uses layer_replication"),
    "a bias in the adapter": ({"lora_bias": True}, None, "uses lora_bias"),
    "a vocabulary that grew on one side": (
        {"modules_to_save": ["lm_head"]}, lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(520, 64)}),
        r"another base: lm_head\.weight has shape \(512, 64\) there",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("changes", "change", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_adapter_of_this_base_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], change: Callable[[dict[str, torch.Tensor]], object] | None, says: str
) -> None:
    base = tiny.model(tmp_path / "base")
    by_peft(tmp_path / "adapter", base, **changes)
    if change:
        edit(tmp_path / "adapter", change)
    with pytest.raises(UserError, match=says) as refusal:
        serving_route.inspect(tmp_path / "adapter", base)
    assert "\n" not in str(refusal.value)


def test_other_files_than_those_of_a_lora_adapter_are_refused(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base")
    with pytest.raises(UserError, match=r"holds no adapter: adapter_config\.json cannot be read"):
        serving_route.inspect(base, base)
    by_peft(tmp_path / "adapter", base)
    file = tmp_path / "adapter" / filenames.ADAPTER_WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        serving_route.inspect(tmp_path / "adapter", base)
    file.rename(file.with_name("adapter_model.bin"))
    with pytest.raises(UserError, match=r"adapter_model\.bin there is a pickle"):
        serving_route.inspect(tmp_path / "adapter", base)
    note = tmp_path / "adapter/adapter_config.json"
    note.write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(UserError, match="describes PROMPT_TUNING"):
        serving_route.inspect(tmp_path / "adapter", base)
    wide = tiny.model(tmp_path / "wide", hidden_size=96)
    by_peft(tmp_path / "wider", wide)
    with pytest.raises(UserError, match=r"another base: .* has shape"):
        serving_route.inspect(tmp_path / "wider", base)
