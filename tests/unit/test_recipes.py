"""Each recipe in configs/ fits the real model that it is for, as its shapes on the meta device say."""

import math
import re
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from support import real_models, recipes
from support.programs import ROOT

from lockstep.model import (
    adapter_files,
    checkpoint_names,
    coverage,
    merge_plan,
    networks,
    peft_adapter,
    vllm_support,
    weight_account,
)
from lockstep.model.adapter_delta import AdapterDelta
from lockstep.settings.tree import Settings

ADAPTER_BYTES = 10  # of one number of an adapter: float32 with its gradient, and two 8-bit states of the optimizer
# Its model's class, parameters in billions, and the share of them that is in 4 bits.
RECIPES = {
    "qwen3.5_4b_qlora": ("Qwen3_5ForConditionalGeneration", 4.54, 0.79),
    "qwen3.5_9b_qlora": ("Qwen3_5ForConditionalGeneration", 9.41, 0.74),
    "qwen3_30b_a3b_qlora": ("Qwen3MoeForCausalLM", 30.53, 0.98),
    "gemma4_e4b_qlora": ("Gemma4ForConditionalGeneration", 8.00, 0.50),
    "gemma4_12b_qlora": ("Gemma4UnifiedForConditionalGeneration", 11.96, 0.91),
    "gpt_oss_20b_qlora": ("GptOssForCausalLM", 20.91, 0.94),
    "smollm3_3b_qlora": ("SmolLM3ForCausalLM", 3.08, 0.91),
    "ministral3_8b_qlora": ("Mistral3ForConditionalGeneration", 8.92, 0.83),
}

QUICK = ("qwen3.5_4b_qlora", "gpt_oss_20b_qlora", "smollm3_3b_qlora")  # one of each kind; the others are slow


def test_every_recipe_is_tried_on_its_model() -> None:
    assert RECIPES.keys() == recipes.MODELS.keys()
    assert {file.stem for file in real_models.CONFIGS.glob("*.json")} == set(recipes.MODELS.values())


@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_fits_its_model_and_the_memory_that_it_names(recipe: str, tmp_path: Path) -> None:
    network, billions, share = RECIPES[recipe]
    settings = recipes.settings_of(recipe)
    vllm_support.check(settings)
    folder = real_models.write(recipes.MODELS[recipe], tmp_path)
    names = checkpoint_names.of_folder(folder)
    assert type(names.network).__name__ == network

    account = weight_account.planned(folder, settings.method, settings.lora, settings.quantization)
    assert account.parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert account.share_4bit == pytest.approx(share, abs=0.005)
    coverage.check_share(account, settings.quantization.min_share_4bit)

    # what is quantized has an adapter, and each is merged into tensors that the checkpoint has
    planned = merge_plan.plan_merge(folder, fresh_adapter(folder, settings), names)
    assert planned.adapter.low_rank.keys() == account.adapted
    for name in account.adapted:
        assert set(names.group_of(name).tensors) <= names.tensors.keys()
        assert not re.search(r"vision|visual|audio|embed|router|mlp\.gate\.", name), name
    quantized = {name for name, weight in account.weights.items() if weight.group.endswith("_4bit")}
    assert quantized == account.adapted

    text = (ROOT / f"configs/{recipe}.yaml").read_text(encoding="utf-8")
    card = int(re.findall(r"one GPU with (\d+) GB or more", text)[0]) * 1e9
    trained = sum(adapter_size(names.shapes[name], settings.lora.r) for name in account.adapted)
    assert 0.2 * card < account.bytes + ADAPTER_BYTES * trained < 0.7 * card  # the rest is for a pass


def fresh_adapter(folder: Path, settings: Settings) -> AdapterDelta:
    """An adapter of rank 1 as its files would be read, on the modules and parameters that the settings name."""
    network = networks.empty(folder)
    model = peft_adapter.attach(network, settings.lora.model_copy(update={"r": 1}))
    with peft_adapter.names_as_in_memory(model):
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    ones = {name: torch.ones(tensor.shape) for name, tensor in state.items()}
    return adapter_files.of_tensors(ones, model.peft_config[peft_adapter.NAME].to_dict())


def adapter_size(shape: tuple[int, ...], rank: int) -> int:
    """Parameters of A and B for a weight [out, in], or for each of a stack of them."""
    return rank * math.prod(shape[:-2]) * (shape[-2] + shape[-1])
