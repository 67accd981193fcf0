"""Merged folders by PEFT are told to be the trained model, whatever their dtype; each planted fault gets its name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import merges, tiny
from support.merges import Tensors

from lockstep.model import checkpoint_names
from lockstep.verification import adapter_contents, weights_proof
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof


def proof_of(base: Path, merged: Path, adapter: Path | None) -> Proof:
    contents = adapter_contents.read(adapter, checkpoint_names.of_folder(base)) if adapter else None
    return weights_proof.of_merged(base, merged, contents, adapter)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, adapter/ and merged/."""
    home = tmp_path_factory.mktemp("verify")
    tiny.model(home / "base")
    tiny.peft_adapter(home / "adapter", home / "base", noise=0.05, use_rslora=True)
    merges.by_peft(home / "base", home / "adapter", home / "merged")
    return home


DTYPES = {
    "fp16": (torch.float16, None), "fp32 saved as bf16": (torch.float32, torch.bfloat16),
    "bf16 saved as fp32": (torch.bfloat16, torch.float32),
}  # fmt: skip
KINDS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 4}},
    "rows": {"trainable_token_indices": [5, 7]},
}


@pytest.mark.parametrize("name", DTYPES)
def test_a_merge_by_peft_is_the_trained_model_in_every_dtype(made: Path, tmp_path: Path, name: str) -> None:
    proof = proof_of(
        made / "base", merges.by_peft(made / "base", made / "adapter", tmp_path, *DTYPES[name]), made / "adapter"
    )
    assert (proof.status, proof.diagnosis) == (PASSED, "merged_original"), proof.text
    assert proof.figures["trained"] == proof.figures["changed_by_adapter"] == 14


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_adapters_of_every_kind_are_merged_right_by_peft(tmp_path: Path, name: str) -> None:
    base = tiny.model(tmp_path / "base", tied=name in ("head", "rows"), shard="100KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    tiny.peft_adapter(tmp_path / "adapter", base, noise=0.05, **KINDS[name])
    merged = merges.by_peft(base, tmp_path / "adapter", tmp_path / "merged")
    proof = proof_of(base, merged, tmp_path / "adapter")
    assert (proof.status, proof.diagnosis) == (PASSED, "merged_original"), proof.text
    assert proof_of(base, base, tmp_path / "adapter").status == FAILED


def test_a_16_bit_adapter_is_right_too(made: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(made / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    proof = proof_of(made / "base", made / "merged", adapter)
    assert (proof.status, proof.diagnosis) == (PASSED, "merged_original"), proof.text


@pytest.mark.parametrize("double", [True, False])
def test_a_merge_onto_nf4_weights_is_told(made: Path, tmp_path: Path, double: bool) -> None:
    weights = merges.by_nf4(merges.tensors(made / "base"), made / "adapter", double)
    merged = merges.changed(made / "merged", tmp_path / "merged", lambda _: weights)
    proof = proof_of(made / "base", merged, made / "adapter")
    assert (proof.status, proof.diagnosis, proof.figures["dequantized"]) == (PASSED, "merged_dequantized", 14), (
        proof.text
    )


def noisy(weights: Tensors) -> Tensors:
    torch.manual_seed(0)
    return {
        name: (w.float() + 2e-3 * torch.randn(w.shape)).bfloat16() if "up_proj" in name else w
        for name, w in weights.items()
    }  # fmt: skip


def swapped(weights: Tensors) -> Tensors:
    order = [*range(500), 501, 500, *range(502, 512)]
    return weights | {"model.embed_tokens.weight": weights["model.embed_tokens.weight"][order]}


def one_row(weights: Tensors) -> Tensors:
    name = "model.layers.0.mlp.up_proj.weight"
    return weights | {name: torch.cat([weights[name][:1] * 1.05, weights[name][1:]])}


def rounded_to_4_bits(weights: Tensors) -> Tensors:
    from lockstep.merging import dequantizer
    from lockstep.settings.schema import Quantization

    return {
        name: dequantizer.round_trip(w, torch.bfloat16, Quantization(), "cpu") if "proj" in name else w
        for name, w in weights.items()
    }


def infinite(weights: Tensors) -> Tensors:
    name = "model.layers.0.mlp.up_proj.weight"
    return weights | {name: weights[name].clone().index_fill_(0, torch.tensor([3]), torch.inf)}


FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "noise": (noisy, "other_weights"),
    "two rows of the embedding": (swapped, "other_weights"),
    "one row": (one_row, "other_weights"),
    "a norm": (lambda w: w | {"model.norm.weight": w["model.norm.weight"] * 1.01}, "other_weights"),
    "missing": (lambda w: {n: t for n, t in w.items() if "layers.1.mlp.up" not in n}, "other_weights"),
    "4 bits": (rounded_to_4_bits, "wrong_dtype"),
    "overflow": (infinite, "wrong_dtype"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_neither_trained_nor_base_is_refused(made: Path, tmp_path: Path, name: str) -> None:
    change, diagnosis = FAULTS[name]
    proof = proof_of(made / "base", merges.changed(made / "merged", tmp_path / "m", change), made / "adapter")
    assert (proof.status, proof.diagnosis) == (FAILED, diagnosis), proof.text
    assert proof.text and proof.next


@pytest.mark.parametrize(("factor", "diagnosis"), [(0.0, "base"), (0.5, "scaled"), (0.95, "scaled"), (1.1, "scaled"), (2.0, "twice")])  # fmt: skip
def test_another_strength_is_measured(made: Path, tmp_path: Path, factor: float, diagnosis: str) -> None:
    change = merges.scaled(merges.tensors(made / "base"), factor)
    proof = proof_of(made / "base", merges.changed(made / "merged", tmp_path / "m", change), made / "adapter")
    assert (proof.status, proof.diagnosis) == (FAILED, diagnosis), proof.text
    assert proof.figures["scale"] == pytest.approx(factor, abs=0.01)


def test_a_setting_that_the_merge_left_out_is_named(made: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(made / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": False}))
    merged = merges.by_peft(made / "base", adapter, tmp_path / "merged")
    proof = proof_of(made / "base", merged, made / "adapter")
    assert proof.diagnosis == "scaled" and "the merge left use_rslora out" in proof.text


@pytest.mark.parametrize(("part", "words"), [("q_proj", "none of q_proj was merged"), ("layers.1.", "layers.1.")])
def test_modules_that_were_not_merged_are_named(made: Path, tmp_path: Path, part: str, words: str) -> None:
    base = merges.tensors(made / "base")
    merged = merges.changed(
        made / "merged", tmp_path / "m", lambda w: {name: base[name] if part in name else t for name, t in w.items()}
    )
    proof = proof_of(made / "base", merged, made / "adapter")
    assert (proof.status, proof.diagnosis) == (FAILED, "partial") and words in proof.text


def test_a_change_below_the_steps_of_the_dtype_is_no_merge(made: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(made / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({n: t * (1e-5 if "lora_B" in n else 1) for n, t in load_file(file).items()}, file)
    proof = proof_of(made / "base", merges.by_peft(made / "base", adapter, tmp_path / "m"), adapter)
    assert (proof.status, proof.diagnosis) == (FAILED, "wrong_dtype"), proof.text
    exact = proof_of(made / "base", merges.by_peft(made / "base", adapter, tmp_path / "f", torch.float32), adapter)
    assert exact.status == PASSED, exact.text


def test_without_an_adapter_only_the_base_is_told(made: Path) -> None:
    assert proof_of(made / "base", made / "base", None).diagnosis == "base"
    assert proof_of(made / "base", made / "merged", None).status == UNKNOWN
