"""Adapters of experts: which ones, what is refused, PEFT's files, and PEFT's own pass on 4-bit experts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import moe
from torch import Tensor

from lockstep.errors import UserError
from lockstep.model import adapter_files, experts, experts_adapter, experts_loading, merge_plan, networks, peft_adapter
from lockstep.settings import yaml_file
from lockstep.settings.schema import Lora, Quantization

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
STACKS = {
    "Qwen3-MoE": ("gate_up_proj", "down_proj"),
    "gpt-oss": ("gate_up_proj", "down_proj"),
    "Nemotron-H": ("up_proj", "down_proj"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: moe.written(name, tmp_path_factory.mktemp("moe")) for name in (*moe.LAYOUTS, "Gemma 4 MoE")}


def logits(model: Any, dtype: torch.dtype) -> Tensor:
    ids = torch.arange(10, 40)[None]
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        result: Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def dequantized_twin(model: Any, folder: Path, dtype: torch.dtype) -> Any:
    """PEFT's model on a plain base whose weights are the dequantized ones, with the same adapter."""
    twin = moe.adapted(folder, dtype, False)
    plain = dict(twin.get_base_model().named_parameters())
    with torch.no_grad():
        for name, layer in networks.linear4bit(model.get_base_model()):
            plain[f"{name}.weight"].copy_(networks.dequantize(layer))
        own = dict(experts.stacks(twin.get_base_model()))
        for name, stack in experts.stacks(model.get_base_model()):
            own[name].packed.copy_(getattr(stack.module, stack.leaf))
    return twin


@pytest.mark.parametrize("name", [*moe.LAYOUTS, "Gemma 4 MoE"])
@DTYPES
def test_peft_computes_on_4bit_experts_what_it_computes_on_their_dequantized_weights(
    folders: dict[str, Path], name: str, dtype: torch.dtype
) -> None:
    model = moe.adapted(folders[name], dtype, True)
    assert model.get_base_model().config.get_text_config()._experts_implementation == (
        experts_loading.FORWARD if name != "Llama 4 text" else model.get_base_model().config._experts_implementation
    )
    assert all(stack.four_bit for _, stack in experts.stacks(model.get_base_model()))
    twin = dequantized_twin(model, folders[name], dtype)
    first = logits(model, dtype)
    assert torch.equal(first, logits(twin, dtype))
    assert torch.equal(first, logits(model, dtype)), "a second pass differs from the first"
    with model.disable_adapter(), twin.disable_adapter():
        assert torch.equal(logits(model, dtype), logits(twin, dtype))
        assert not torch.equal(logits(model, dtype), first)
    assert torch.equal(first, logits(model, dtype))


@pytest.mark.parametrize("four_bit", [True, False])
@pytest.mark.parametrize("name", ["Qwen3-MoE", "gpt-oss", "Llama 4 text"])
def test_a_saved_adapter_is_pefts_and_comes_back_to_the_bit(
    folders: dict[str, Path], name: str, four_bit: bool, tmp_path: Path
) -> None:
    model = moe.adapted(folders[name], torch.float32, four_bit)
    peft_adapter.save(model, "base", None, None, tmp_path)
    base = networks.load(folders[name], torch.float32, "cpu", Quantization() if four_bit else None)
    with peft_adapter.names_as_in_memory(base):
        again = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(model, torch.float32), logits(again, torch.float32))
    # by PEFT alone, on a plain base
    plain = networks.load(folders[name], torch.float32, "cpu")
    if name == "Qwen3-MoE":  # else PEFT would take the names for those of transformers 4
        with peft_adapter.names_as_in_memory(plain):
            theirs = PeftModel.from_pretrained(plain, tmp_path)
    else:
        theirs = PeftModel.from_pretrained(plain, tmp_path)
    ours = {key: weight for key, weight in model.named_parameters() if "lora_" in key}
    loaded = {key: weight for key, weight in theirs.named_parameters() if "lora_" in key}
    assert ours.keys() == loaded.keys()
    assert all(torch.equal(ours[key], loaded[key]) for key in ours)


@pytest.mark.parametrize(
    "lora", [moe.LORA, Lora(r=4, lora_dropout=0, use_rslora=True, target_parameters=("experts.down_proj",))]
)
@pytest.mark.parametrize("name", ["Qwen3-MoE", "gpt-oss", "Nemotron-H", "Llama 4 text"])
def test_what_is_read_and_added_is_what_peft_merges(
    folders: dict[str, Path], name: str, lora: Lora, tmp_path: Path
) -> None:
    model = moe.adapted(folders[name], torch.float32, True, lora)
    peft_adapter.save(model, "base", None, None, tmp_path)
    plan = merge_plan.plan_merge(folders[name], adapter_files.read(tmp_path))
    twin = moe.adapted(folders[name], torch.float32, False, lora)
    before = {name: stack.packed.detach().clone() for name, stack in experts.stacks(twin.get_base_model())}
    adapted = peft_adapter.adapted_weights(twin.get_base_model())
    merged = dict(experts.stacks(twin.merge_and_unload()))
    changed = [stack for stack in before if stack in adapted]
    assert len(changed) == (len(before) if lora is moe.LORA else len(before) / 2)
    for stack in changed:
        ours = torch.cat(list(plan.adapter.pieces(stack, before[stack])))
        assert torch.allclose(ours, merged[stack].packed, rtol=0, atol=1e-6)
        assert (ours - before[stack]).abs().amax((1, 2)).min() > 1e-3, "an expert was left out"


def test_an_expert_that_no_token_chose_is_no_reason_to_refuse(folders: dict[str, Path], tmp_path: Path) -> None:
    model = moe.adapted(folders["Qwen3-MoE"], torch.float32, False)
    _, chain = moe.wrapper_of(model)
    b = chain["down_proj"].lora_B["default"].weight
    b.data.view(len(b), -1, 4)[:, :, 1] = 0
    peft_adapter.save(model, "base", None, None, tmp_path)
    name = "model.layers.0.mlp.experts.down_proj"
    update = adapter_files.read(tmp_path).low_rank[name]
    base = torch.zeros(dict(experts.stacks(networks.empty(folders["Qwen3-MoE"])))[name].shape)
    assert update.fits(base.shape)
    assert [bool(delta.any()) for delta in update.added_to(base, slice(0, 4))] == [True, False, True, True]
    b.data.zero_()
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"no effect on {name}"):
        adapter_files.read(tmp_path)


def test_which_experts_get_an_adapter(folders: dict[str, Path]) -> None:
    network = networks.empty(folders["Qwen3-MoE"])
    both = [f"model.layers.{layer}.mlp.experts.{leaf}" for layer in (0, 1) for leaf in STACKS["Qwen3-MoE"]]
    targets = experts_adapter.targets
    assert targets(network, Lora()) == both
    assert targets(network, Lora(target_modules=("q_proj",))) == []
    assert targets(network, Lora(target_modules=("q_proj",), target_parameters=("experts.down_proj",))) == both[1::2]
    assert targets(network, Lora(target_parameters=("layers.1.mlp.experts.down_proj", "gate_up_proj"))) == [
        both[0],
        both[2],
        both[3],
    ]
    assert targets(network, Lora(target_parameters=("none",))) == []
    with pytest.raises(
        UserError, match=r"target_parameters: up_proj is not found.*experts.down_proj, experts.gate_up_proj"
    ):
        targets(network, Lora(target_parameters=("up_proj",)))


def test_without_experts_nothing_changes(tiny_model: Path) -> None:
    network = networks.empty(tiny_model)
    assert experts_adapter.targets(network, Lora()) == []
    experts_adapter.check(network, Lora())
    with pytest.raises(UserError, match="the model has no experts"):
        experts_adapter.targets(network, Lora(target_parameters=("down_proj",)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"lora_dropout": 0.05},
            "--lora.lora_dropout 0.05: .*set --lora.lora_dropout 0, or --lora.target_parameters none",
        ),
        ({"use_dora": True}, "--lora.use_dora: .*--lora.target_parameters none"),
        ({"init_lora_weights": "pissa"}, "--lora.init_lora_weights pissa: .*default or gaussian"),
        ({"init_lora_weights": "orthogonal"}, "--lora.init_lora_weights orthogonal"),
    ],
)
def test_what_peft_cannot_do_of_experts_is_refused_by_the_setting(
    folders: dict[str, Path], changes: dict[str, Any], words: str
) -> None:
    network = networks.empty(folders["Gemma 4 MoE"])
    lora = Lora(**{"lora_dropout": 0} | changes)
    with pytest.raises(UserError, match=words):
        experts_adapter.check(network, lora)
    experts_adapter.check(network, lora.model_copy(update={"target_parameters": ("none",)}))


def test_the_gaussian_start_is_drawn_for_experts_too(folders: dict[str, Path]) -> None:
    base = networks.load(folders["Qwen3-MoE"], torch.float32, "cpu", Quantization())
    model = peft_adapter.attach(base, Lora(r=8, lora_dropout=0, init_lora_weights="gaussian"))
    _, chain = moe.wrapper_of(model)
    assert chain["down_proj"].lora_A["default"].weight.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert all(weight.dtype == torch.float32 for weight in model.parameters() if weight.requires_grad)


def test_hashes_name_every_stack_in_4_bits(folders: dict[str, Path]) -> None:
    from lockstep.merging import dequantizer

    model = moe.adapted(folders["gpt-oss"], torch.bfloat16, True)
    hashes = peft_adapter.base_hashes(model)
    plain = dict(experts.stacks(networks.load(folders["gpt-oss"], torch.bfloat16, "cpu")))
    assert plain and plain.keys() <= hashes.keys()
    for name, stack in plain.items():
        again = dequantizer.round_trip(stack.packed.detach(), torch.bfloat16, Quantization(), "cpu")
        assert networks.tensor_sha256(again) == hashes[name]


def test_what_peft_makes_of_all_linear_by_itself_is_merged_too(folders: dict[str, Path], tmp_path: Path) -> None:
    """It takes the names for those of transformers 4: twice the rank for gate and up together, and the router."""
    from peft import LoraConfig, get_peft_model

    base = networks.load(folders["Qwen3-MoE"], torch.float32, "cpu")
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path)
    plan = merge_plan.plan_merge(folders["Qwen3-MoE"], adapter_files.read(tmp_path))
    stacks = {name for name, _ in experts.stacks(networks.empty(folders["Qwen3-MoE"]))}
    assert stacks < plan.adapter.names and "model.layers.0.mlp.gate.weight" in plan.adapter.names
    before = dict(networks.load(folders["Qwen3-MoE"], torch.float32, "cpu").named_parameters())
    merged = dict(model.merge_and_unload().named_parameters())
    for name in plan.adapter.names:
        ours = torch.cat(list(plan.adapter.pieces(name, before[name].detach())))
        assert torch.allclose(ours, merged[name], rtol=0, atol=1e-6), name


@pytest.mark.parametrize("name", ["Qwen3-MoE", "gpt-oss"])
def test_a_dropped_expert_is_told_by_the_record(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    from lockstep.training import reference

    model = moe.adapted(folders[name], torch.float32, True)
    counts = experts_adapter.changed(model)
    assert counts.keys() == {stack for stack, _ in experts.stacks(model.get_base_model())}
    assert set(counts.values()) == {4}
    (tmp_path / "reference.json").write_text(json.dumps({"experts": counts}))
    reference.check_experts(tmp_path, model)
    _, chain = moe.wrapper_of(model)
    b = chain["gate_up_proj"].lora_B["default"].weight
    b.data.view(len(b), -1, 4)[:, :, 2] = 0
    with pytest.raises(UserError, match=r"changes 3 experts of model.layers.0.mlp.experts.gate_up_proj, .* changed 4"):
        reference.check_experts(tmp_path, model)


def test_none_is_a_word_on_the_command_line_too() -> None:
    settings = yaml_file.load(None, {"lora.target_parameters": "none"})
    assert settings.lora.target_parameters == ("none",)
