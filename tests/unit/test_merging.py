import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from lockstep import merging, models
from lockstep.config import Quantization
from lockstep.errors import UserError


def adapter(folder: Path, base: Path, **changes) -> Path:
    """A random adapter, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes
    torch.manual_seed(1)
    network = get_peft_model(models.load(base, torch.float32, "cpu"), LoraConfig(**settings))
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "tied", "changes"),
    [
        ("llama", True, {}),
        ("llama", False, {}),
        ("qwen2", True, {}),
        ("qwen3", False, {"use_rslora": True}),
        ("gemma", True, {"target_modules": ["q_proj", "down_proj"]}),
    ],
)
def test_the_merge_equals_pefts_own_to_the_last_bit_of_bfloat16(
    tmp_path: Path, kind: str, tied: bool, changes: dict
) -> None:
    from peft import PeftModel

    base = tiny.model(tmp_path / "base", kind=kind, tied=tied)
    lora = adapter(tmp_path / "adapter", base, **changes)
    merging.write_weights(base, tmp_path / "out", merging.read_adapter(lora), None)
    ours = load_file(tmp_path / "out/model.safetensors")
    reference = PeftModel.from_pretrained(models.load(base, torch.float32, "cpu"), lora).merge_and_unload().state_dict()
    assert len(ours) >= 20
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.float(), reference[name], rtol=2**-7, atol=1e-6)
    changed = [n for n, t in load_file(base / "model.safetensors").items() if not torch.equal(ours[n], t)]
    assert len(changed) == (4 if kind == "gemma" else 14)


def test_a_sharded_base_gives_the_same_weights(tmp_path: Path) -> None:
    one = tiny.model(tmp_path / "one")
    many = tiny.model(tmp_path / "many", shard="50KB")
    assert len(list(merging.shards(many))) > 2
    deltas = merging.read_adapter(adapter(tmp_path / "adapter", one))
    for base in (one, many):
        merging.write_weights(base, tmp_path / f"out-{base.name}", deltas, None)
    whole = load_file(tmp_path / "out-one/model.safetensors")
    parts: dict[str, torch.Tensor] = {}
    for shard in (tmp_path / "out-many").iterdir():
        parts |= load_file(shard)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def edit(folder: Path, change) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), r"incomplete: .*q_proj\.lora_B\.weight is missing"),
        (lambda t: t[f"{Q}.lora_B.weight"].zero_(), r"no effect on .*layers\.0\.self_attn\.q_proj"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)}), "incomplete|does not know"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(2)}), "does not know"),
        (lambda t: t.update({n.replace("layers.0", "layers.9"): v.clone() for n, v in t.items()}), "another base"),
        (lambda t: t[f"{Q}.lora_A.weight"].fill_(float("inf")), "not finite"),
    ],
)
def test_a_damaged_adapter_is_refused_by_name(tmp_path: Path, change, says: str) -> None:
    base = tiny.model(tmp_path / "base")
    lora = edit(adapter(tmp_path / "adapter", base), change)
    with pytest.raises(UserError, match=says):
        merging.write_weights(base, tmp_path / "out", merging.read_adapter(lora), None)


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    lora = adapter(tmp_path / "adapter", tiny.model(tmp_path / "wide", hidden_size=96))
    with pytest.raises(UserError, match=r"another base: .* has shape"):
        merging.write_weights(tiny.model(tmp_path / "base"), tmp_path / "out", merging.read_adapter(lora), None)


def test_what_this_merge_does_not_know_is_refused(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base")
    with pytest.raises(UserError, match="use_dora"):
        merging.read_adapter(adapter(tmp_path / "dora", base, use_dora=True))


def test_the_dequantized_base_is_proved_tensor_by_tensor(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base")
    layers = models.linear4bit(models.load(base, torch.bfloat16, "cpu", Quantization()))
    hashes = {f"{name}.weight": models.tensor_sha256(models.dequantize(layer)) for name, layer in layers}
    note = tmp_path / "base_tensors.json"
    note.write_text(json.dumps({"dequantized": hashes, "dtype": "bfloat16"}))
    dequantizer = merging.Dequantizer(tmp_path, Quantization())
    merging.write_weights(base, tmp_path / "out", {}, dequantizer)
    written = load_file(tmp_path / "out/model.safetensors")
    assert all(models.tensor_sha256(written[name]) == sha256 for name, sha256 in hashes.items())
    other = merging.Dequantizer(tmp_path, Quantization(bnb_4bit_quant_type="fp4"))
    with pytest.raises(UserError, match="is not the tensor that the adapter was trained on"):
        merging.write_weights(base, tmp_path / "out2", {}, other)


def test_the_end_of_turn_becomes_a_stop_token_everywhere(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base", eos_token_id=0)
    (tmp_path / "adapter").mkdir()
    tiny.tokenizer().save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter/contract.json").write_text("{}\n")
    merging.write_rest(base, tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / "out/contract.json").read_text() == "{}\n"
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [2, 0]
    assert (tmp_path / "out/chat_template.jinja").read_text() == tiny.CHATML
