"""What a merge writes of models of many families, whose files name or hold tensors otherwise than memory does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import families, rounding, tiny

from lockstep.errors import UserError
from lockstep.merging import dequantizer, merge, weights_check
from lockstep.model import (
    adapter_delta,
    adapter_files,
    checkpoint_files,
    checkpoint_names,
    library_checks,
    merge_plan,
    networks,
    peft_adapter,
)
from lockstep.settings.schema import Lora, Quantization

QUICK = ("Mixtral", "Nemotron-H", "Qwen3.5-MoE", "Gemma 4")
MORE = (
    "Llama 3", "Llama 3.2", "Qwen3-MoE", "gpt-oss", "Qwen3.5", "Gemma 3", "Ministral 3", "Qwen3-VL", "DeepSeek-V3",
    "ERNIE 4.5 MoE", "Granite 4 hybrid", "LFM2-MoE", "GLM-4-MoE", "Qwen3-Next", "Gemma 4 MoE", "Hunyuan MoE",
)  # fmt: skip


def adapted(base: Path, **changes) -> torch.nn.Module:
    """The base in float32, with an adapter on all that all-linear means, every trainable tensor moved."""
    options = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0} | changes
    network = peft_adapter.attach(networks.load(base, torch.float32, "cpu"), Lora(**options))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape)
    return network.eval()


def saved(network: torch.nn.Module, folder: Path) -> Path:
    network.save_pretrained(folder, save_embedding_layers=False)
    tiny.tokenizer().save_pretrained(folder)
    (folder / "contract.json").write_text("{}\n")
    return folder


def check_merge(name: str, home: Path, monkeypatch) -> None:
    """The merged folder has the base's tensors by their names, and loads as what PEFT makes of the network itself."""
    base = families.write(families.ALL[name], home / "base")
    network = adapted(base)
    lora = saved(network, home / "adapter")
    monkeypatch.setattr(merge, "DTYPE", torch.float32)
    out = tiny.merged(base, lora, home / "out")
    there, before = checkpoint_files.tensors_of(out), checkpoint_files.tensors_of(base)
    assert {key: tensor.shape for key, tensor in there.items()} == {key: one.shape for key, one in before.items()}
    account = weights_check.compare(merge.Merge(merge_plan.plan_merge(base, adapter_files.read(lora)), None), out)
    assert account.wrong == {} and account.rounded == 0 and account.tensors == len(there)
    exact = rounding.in_float64(network).merge_and_unload().state_dict()
    theirs = network.merge_and_unload().state_dict()
    ours = networks.load(out, torch.float32, "cpu").state_dict()
    assert ours.keys() == theirs.keys()
    plain = networks.load(base, torch.float32, "cpu").state_dict()
    changed = {key for key in theirs if not torch.equal(theirs[key], plain[key])}
    assert changed >= adapter_files.read(lora).names and changed
    for key in ours.keys() - changed:
        assert torch.equal(ours[key], plain[key]), key
    rounding.assert_as_exact(*({key: part[key] for key in changed} for part in (ours, theirs, exact)))


@pytest.mark.parametrize("name", QUICK)
def test_a_merge_is_pefts_under_the_names_of_the_bases_files(name: str, tmp_path: Path, monkeypatch) -> None:
    check_merge(name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_merge_of_more_families(name: str, tmp_path: Path, monkeypatch) -> None:
    check_merge(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3.5-MoE", "gpt-oss"])
def test_experts_are_written_as_the_files_hold_them_over_several_files(name: str, tmp_path: Path) -> None:
    base = families.write(families.ALL[name], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    place = {}
    for number, part in enumerate((dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2]))):
        file = f"model-{number}.safetensors"
        save_file(part, base / file, {"format": "pt"})
        place |= dict.fromkeys(part, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    state = networks.load(base, torch.bfloat16, "cpu").state_dict()
    (first, *_) = [key for key in state if key.endswith("experts.gate_up_proj")]
    state[first] = state[first] * 2
    merge.write_weights(base, tmp_path / "out", adapter_delta.AdapterDelta(whole={first: state[first]}), None)
    (tmp_path / "out/config.json").write_bytes((base / "config.json").read_bytes())
    merged = networks.load(tmp_path / "out", torch.bfloat16, "cpu").state_dict()
    assert all(torch.equal(merged[key], tensor) for key, tensor in state.items())
    there = checkpoint_files.tensors_of(tmp_path / "out")
    assert {key: tensor.file.name for key, tensor in there.items()} == place
    untouched = tensors.keys() - set(checkpoint_names.of_folder(base).group_of(first).tensors)
    for file in ("model-0.safetensors", "model-1.safetensors"):
        written = load_file(tmp_path / "out" / file)
        assert all(torch.equal(tensors[key], written[key]) for key in untouched & written.keys())


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3.5-MoE"])
def test_the_dequantized_merge_holds_the_weights_that_training_computed_with(name: str, tmp_path: Path) -> None:
    base = families.write(families.ALL[name], tmp_path / "base")
    quantized = networks.load(base, torch.bfloat16, "cpu", Quantization())
    hashes = peft_adapter.base_hashes(peft_adapter.attach(quantized, Lora(lora_dropout=0.0)))
    (tmp_path / "base_tensors.json").write_text(json.dumps({"dequantized": hashes, "dtype": "bfloat16"}))
    assert any(key.endswith("experts.gate_up_proj") for key in hashes)
    assert not any("visual" in key or "router" in key for key in hashes)
    proving = dequantizer.Dequantizer(tmp_path, Quantization())
    merge.write_weights(base, tmp_path / "out", adapter_delta.AdapterDelta(), proving)
    (tmp_path / "out/config.json").write_bytes((base / "config.json").read_bytes())
    merged = networks.load(tmp_path / "out", torch.bfloat16, "cpu").state_dict()
    assert {key: networks.tensor_sha256(merged[key]) for key in hashes} == hashes
    plain = networks.load(base, torch.bfloat16, "cpu").state_dict()
    assert all(torch.equal(merged[key], tensor) for key, tensor in plain.items() if key not in hashes)


def look(folder: Path) -> None:
    """As stage 00 looks at a model, without limits."""
    for step in library_checks.model_steps(folder):
        step.work()


def test_bounds_may_be_infinite_and_weights_may_not(tmp_path: Path) -> None:
    base = families.write(families.ALL["Gemma 4"], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    bounds = [name for name in tensors if name.endswith(("input_max", "output_max"))]
    assert bounds
    tensors |= {name: torch.tensor(torch.inf) for name in bounds}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    look(base)
    merge.write_weights(base, tmp_path / "out", adapter_delta.AdapterDelta(), None)
    assert all(torch.equal(load_file(tmp_path / "out/model.safetensors")[name], tensors[name]) for name in bounds)
    weight = next(name for name in tensors if name.endswith("q_proj.linear.weight"))
    tensors[weight][0, 0] = torch.inf
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{weight} of the model holds values that are not finite"):
        look(base)
    with pytest.raises(UserError, match=f"{weight} would hold values that are not finite"):
        merge.write_weights(base, tmp_path / "out2", adapter_delta.AdapterDelta(), None)


def test_files_of_the_base_go_along(tmp_path: Path) -> None:
    base = families.write(families.ALL["Gemma 3"], tmp_path / "base")
    (base / "processor_config.json").write_text('{"image_seq_length": 4, "chat_template": "the old one"}')
    (base / "LICENSE.txt").write_text("free")
    for name in ("tekken.json", "chat_template.json", "modeling_gemma.py", "README.md", "optimizer.bin"):
        (base / name).write_text("{}")
    out = tiny.merged(base, saved(adapted(base), tmp_path / "adapter"), tmp_path / "out")
    assert json.loads((out / "processor_config.json").read_text()) == {"image_seq_length": 4}
    assert json.loads((out / "preprocessor_config.json").read_text())["patch_size"] == 4
    assert (out / "LICENSE.txt").read_text() == "free"
    names = {file.name for file in out.iterdir()}
    assert not names & {"tekken.json", "chat_template.json", "modeling_gemma.py", "README.md", "optimizer.bin"}
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"] and config["text_config"]["vocab_size"] == 512


def test_a_wrappers_head_that_is_no_longer_the_embedding_is_untied(tmp_path: Path) -> None:
    base = families.write(families.ALL["Qwen3.5 tied"], tmp_path / "base")
    network = adapted(base, modules_to_save=("lm_head",))
    lora = saved(network, tmp_path / "adapter")
    out = tiny.merged(base, lora, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and not config["text_config"].get("tie_word_embeddings")
    merged = networks.load(out, torch.float32, "cpu").state_dict()
    head = adapter_files.read(lora).whole["lm_head.weight"]
    assert torch.equal(merged["lm_head.weight"], head.bfloat16().float())
    assert not torch.equal(merged["lm_head.weight"], merged["model.language_model.embed_tokens.weight"])
