import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import families, tiny

from lockstep.merging import merge
from lockstep.model import adapter_delta, checkpoint_files, full_weights, networks


def trained(base: Path) -> torch.nn.Module:
    """A base whose weights that take part in text were moved, and are the only ones that may be."""
    network = networks.load(base, torch.float32, "cpu")
    text = networks.text_parameters(network)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.requires_grad_(name in text)
            if name in text:
                weight += 0.1 * torch.randn(weight.shape)
    return network


@pytest.mark.parametrize(
    ("name", "in_float32"), [("Qwen3.5", "A_log"), ("Gemma 3", None), ("Mixtral", None), ("DeepSeek-V3", "bias")]
)
def test_what_was_trained_is_saved_as_the_base_holds_it_and_all_else_unchanged(
    name: str, in_float32: str | None, tmp_path: Path
) -> None:
    base = families.write(families.ALL[name], tmp_path / "base")
    network = trained(base)
    kept = full_weights.save(network, None, base, tmp_path / "full")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "full/model.safetensors")
    assert after.keys() == before.keys()
    state = networks.load(tmp_path / "full", torch.float32, "cpu").state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    unchanged = [key for key in before if torch.equal(before[key].float(), after[key].float())]
    assert all(after[key].dtype == before[key].dtype for key in unchanged)
    assert all(after[key].dtype == torch.float32 for key in after.keys() - unchanged)
    towers = [key for key in before if "visual" in key or "vision" in key or key.startswith("mtp.")]
    assert set(towers) <= set(unchanged)
    assert bool(towers) == ("vision_config" in json.loads((tmp_path / "full/config.json").read_text()))
    assert all(key.endswith(in_float32 or "none") for key in kept) and bool(kept) == bool(in_float32)

    merge.write_weights(tmp_path / "full", tmp_path / "out", adapter_delta.AdapterDelta(), None, kept)
    merged = load_file(tmp_path / "out/model.safetensors")
    assert {key: tensor.dtype for key, tensor in merged.items()} == {key: one.dtype for key, one in before.items()}
    assert all(torch.equal(merged[key], before[key]) for key in unchanged)
    assert all(torch.equal(merged[key], after[key].to(merged[key].dtype)) for key in merged)


def test_several_files_stay_several(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base", shard="50KB", tied=True)
    full_weights.save(trained(base), None, base, tmp_path / "full")
    before, after = (checkpoint_files.tensors_of(tmp_path / name) for name in ("base", "full"))
    assert {name: tensor.file.name for name, tensor in before.items()} == {
        name: tensor.file.name for name, tensor in after.items()
    }
    assert len({tensor.file for tensor in after.values()}) > 2
