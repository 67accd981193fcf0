"""Whether an adapter acts: PEFT's own do, and what a server would leave out in silence is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from lockstep.errors import UserError
from lockstep.model import checkpoint_names
from lockstep.verification import adapter_contents, adapter_proof
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

FILE = "adapter_model.safetensors"
Tensors = dict[str, torch.Tensor]


def proof_of(base: Path | None, adapter: Path) -> Proof:
    names = checkpoint_names.of_folder(base) if base else None
    return adapter_proof.of_adapter(adapter, adapter_contents.read(adapter, names), names)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and adapter/."""
    home = tmp_path_factory.mktemp("verify")
    tiny.peft_adapter(home / "adapter", tiny.model(home / "base"))
    return home


def altered(made: Path, out: Path, change: Callable[[Tensors], Tensors], **config: object) -> Path:
    shutil.copytree(made / "adapter", out)
    save_file(change(load_file(out / FILE)), out / FILE, metadata={"format": "pt"})
    content = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(content | config))
    return out


def test_pefts_adapter_acts(made: Path) -> None:
    proof = proof_of(made / "base", made / "adapter")
    assert (proof.status, proof.figures["modules"], proof.figures["coverage"]) == (PASSED, 14, 1.0)
    assert proof_of(None, made / "adapter").status == PASSED


def zeroed(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: tensor * (0 if "lora_B" in name and part in name else 1) for name, tensor in tensors.items()
    }


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str, str]] = {
    "as a fresh one": (zeroed(""), "no_effect", "14 modules are without effect"),
    "one layer not trained": (zeroed("layers.1.mlp"), "partial", "model.layers.1.mlp.down_proj"),
    "no prefix": (renamed("base_model.model.", ""), "no_effect", "fit no module"),
    "a prefix twice": (renamed("model.model.", "model.model.model."), "no_effect", "fit no module"),
    "of a compiled model": (renamed("base_model.model.model.", "base_model.model._orig_mod.model."), "no_effect", "fit no module"),
    "other names in part": (renamed("mlp.up_proj", "feed_forward.w3"), "partial", "feed_forward.w3"),
    "cut": (lambda t: {n: w for n, w in t.items() if "layers.1" not in n}, "partial", "nothing is held for 7 modules"),
    "not finite": (lambda t: t | {next(iter(t)): next(iter(t.values())) * torch.nan}, "other_weights", "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_act_is_named(made: Path, tmp_path: Path, name: str) -> None:
    change, diagnosis, words = FAULTS[name]
    proof = proof_of(made / "base", altered(made, tmp_path / "a", change))
    assert (proof.status, proof.diagnosis) == (FAILED, diagnosis), proof.text
    assert words in proof.text and proof.next


def test_modules_that_a_training_on_text_never_reaches_may_be_without_effect(made: Path) -> None:
    names = checkpoint_names.of_folder(made / "base")
    contents = adapter_contents.read(made / "adapter", names)
    silent = ("model.vision_tower.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.3.up_proj")
    assert not adapter_proof._suspicious(adapter_contents.replace(contents, silent=silent), names)


def test_an_adapter_of_another_base_is_an_error(made: Path, tmp_path: Path) -> None:
    wider = tiny.model(tmp_path / "wider", intermediate_size=160)
    with pytest.raises(UserError, match=r"belongs to another base: .*mlp.* is"):
        proof_of(wider, made / "adapter")
    other = altered(made, tmp_path / "a", renamed("model.layers", "transformer.h"))
    with pytest.raises(UserError, match="belongs to another base"):
        proof_of(made / "base", other)


def test_what_cannot_be_computed_with_is_unknown(made: Path, tmp_path: Path) -> None:
    proof = proof_of(made / "base", altered(made, tmp_path / "a", lambda t: t, fan_in_fan_out=True))
    assert proof.status == UNKNOWN and "fan_in_fan_out" in proof.text
