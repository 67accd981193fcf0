"""What stage 00 says of models of many kinds; its limits on time and memory are in test_limited_process.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import families, tiny

from lockstep.errors import UserError
from lockstep.model import library_checks


def look(folder: Path) -> None:
    """As stage 00 looks at a model, without limits."""
    for step in library_checks.model_steps(folder):
        step.work()


@pytest.mark.parametrize("name", ["Qwen3.5-MoE", "Gemma 4", "Ministral 3", "Qwen3-VL", "Nemotron-H"])
def test_models_are_taken_as_the_hub_has_them(name: str, tmp_path: Path) -> None:
    look(families.write(families.ALL[name], tmp_path))


def test_a_model_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    families.write(families.ALL["Mixtral"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.gate.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"the weights of the model lack model.layers.1.mlp.gate.weight \(1 tensors"):
        look(tmp_path)


def test_a_package_that_a_tower_asks_for_is_named(tmp_path: Path) -> None:
    from transformers import Gemma3nConfig
    from transformers.utils import is_timm_available

    if is_timm_available():
        pytest.skip("timm is here")
    config = Gemma3nConfig()
    config.architectures = ["Gemma3nForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    save_file({"model.language_model.norm.weight": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"take a checkpoint of its text part alone \(.*timm"):
        look(tmp_path)
