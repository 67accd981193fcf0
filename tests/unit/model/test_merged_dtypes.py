from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support import families

from lockstep.merging import merge
from lockstep.model import adapter_delta, checkpoint_names, merged_dtypes


def test_the_dtypes_that_a_merge_keeps(tmp_path: Path) -> None:
    base = families.write(families.ALL["DeepSeek-V3"], tmp_path / "base")
    before = load_file(base / "model.safetensors")
    (bias,) = [name for name in before if name.endswith("e_score_correction_bias")]
    assert before[bias].dtype == torch.float32
    before["model.layers.1.input_layernorm.weight"] = before["model.layers.1.input_layernorm.weight"].float() + 2**-12
    before["model.layers.9.counts"] = torch.arange(5)
    before["model.layers.9.on"] = torch.tensor(True)
    save_file(before, base / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    merge.write_weights(base, out, adapter_delta.AdapterDelta(), None)
    after = load_file(out / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )

    whole = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    save_file(whole, base / "model.safetensors", {"format": "pt"})  # float32 throughout: the class decides
    dtypes = merged_dtypes.of_names(checkpoint_names.of_folder(base), torch.bfloat16)
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {bias}
    assert dtypes["model.layers.9.counts"] == torch.int64


def test_after_full_training_what_was_trained_is_no_exception_however_little_it_is(tmp_path: Path) -> None:
    base = families.write(families.ALL["Gemma 3"], tmp_path)
    tensors = load_file(base / "model.safetensors")
    (text,) = [name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight") and "language" in name]
    tensors[text] = tensors[text].float()  # beside a tower that outweighs it
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    names = checkpoint_names.of_folder(base)
    assert merged_dtypes.of_names(names)[text] == torch.float32  # of a base, an exception
    assert merged_dtypes.of_names(names, kept=[])[text] == torch.bfloat16
    assert merged_dtypes.of_names(names, kept=[text])[text] == torch.float32
