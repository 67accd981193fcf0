from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import families, tiny

from lockstep.errors import UserError
from lockstep.model import checkpoint_files, checkpoint_names, networks

# One of each kind of mapping: none, renamed, experts one by one, experts in one tensor, wrappers.
QUICK = ("Llama 3.2", "Mixtral", "Nemotron-H", "Qwen3.5-MoE", "Gemma 3")
MORE = sorted(families.ALL.keys() - {*QUICK, "BERT", "T5"})


def check_round_trip(name: str, folder: Path) -> checkpoint_names.CheckpointNames:
    """The mapping gives what transformers loads, bit by bit, and the files' tensors back."""
    families.write(families.ALL[name], folder)
    names = checkpoint_names.of_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    state = networks.load(folder, torch.bfloat16, "cpu").state_dict()
    loaded = {}
    for group in names.groups:
        of_group = {tensor: tensors[tensor] for tensor in group.tensors}
        assert group.can_return
        loaded |= group.check_round_trip(of_group)
    assert {key: tuple(tensor.shape) for key, tensor in loaded.items()} == names.shapes
    assert state.keys() - loaded.keys() <= names.tied.keys()
    for key, tensor in loaded.items():
        assert torch.equal(tensor.to(state[key].dtype), state[key]), key
    in_groups = [tensor for group in names.groups for tensor in group.tensors]
    assert sorted([*in_groups, *names.unloaded]) == sorted(tensors)
    return names


@pytest.mark.parametrize("name", QUICK)
def test_the_mapping_gives_what_transformers_loads_and_the_files_back(name: str, tmp_path: Path) -> None:
    check_round_trip(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_mapping_of_every_family_leads_both_ways(name: str, tmp_path: Path) -> None:
    check_round_trip(name, tmp_path)


def test_what_a_parameter_is_made_of(tmp_path: Path) -> None:
    families.write(families.ALL["Nemotron-H"], tmp_path)
    names = checkpoint_names.of_folder(tmp_path)
    assert names.on_disk("lm_head.weight") == "lm_head.weight"
    assert names.on_disk("model.layers.0.mixer.A_log") == "backbone.layers.0.mixer.A_log"
    (layer,) = {key.split(".")[2] for key in names.shapes if key.endswith("experts.up_proj")}
    group = names.group_of(f"model.layers.{layer}.mixer.experts.up_proj")
    assert group.tensors == tuple(f"backbone.layers.{layer}.mixer.experts.{n}.up_proj.weight" for n in range(4))
    with pytest.raises(KeyError):
        names.group_of("model.layers.0.nothing")


def test_what_transformers_does_not_load_is_counted_by_name(tmp_path: Path) -> None:
    families.write(families.ALL["Qwen3.5"], tmp_path)
    names = checkpoint_names.of_folder(tmp_path)
    assert set(names.unloaded) == {"mtp.fc.weight", "mtp.norm.weight"}
    assert names.size(names.unloaded) == 2 * (64 * 128 + 64)


def test_parts_of_unequal_size_come_back(tmp_path: Path) -> None:
    """OLMo hybrid's files hold convolutions of unequal size, and transformers cuts the whole into equal parts."""
    names = check_round_trip("OLMo hybrid", tmp_path)
    group = next(group for group in names.groups if any("q_conv1d" in name for name in group.tensors))
    assert len({names.tensors[name].shape for name in group.tensors}) > 1


def test_a_conversion_that_does_not_lead_back_is_refused(tmp_path: Path) -> None:
    families.write(families.ALL["Mixtral"], tmp_path)
    group = next(group for group in checkpoint_names.of_folder(tmp_path).groups if not group.is_plain)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensors[name] for name in group.tensors}
    other = tuple(replace(member, renamed=f"{member.renamed}.scale") for member in group.members)
    assert group.can_return and not replace(group, members=other).can_return
    with pytest.raises(UserError, match=r"w1.weight cannot be written again as the checkpoint holds it"):
        replace(group, members=other).check_round_trip(tensors)
    swapped = replace(group, members=(group.members[2], *group.members[1:2], group.members[0], *group.members[3:]))
    with pytest.raises(UserError, match=r"w1.weight would come back from transformers' conversion as another tensor"):
        swapped.check_round_trip(tensors)


@pytest.mark.parametrize("transposed", [True, False])
def test_experts_that_some_checkpoints_hold_transposed_come_back_as_they_were(tmp_path: Path, transposed: bool) -> None:
    """Qwen3-VL-MoE's mapping transposes "unless the shape fits already", which alone is no way back."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = families.text(**families.FEW | {"moe_intermediate_size": 24})
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
              "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}  # fmt: skip
    network = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision))
    network.to(torch.bfloat16).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    experts = [name for name in tensors if "experts" in name]
    assert len(experts) == 4
    if transposed is (tensors[experts[0]].shape == network.state_dict()[experts[0]].shape):
        tensors |= {name: tensors[name].transpose(1, 2).contiguous() for name in experts}
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    names = checkpoint_names.of_folder(tmp_path)
    state = networks.load(tmp_path, torch.bfloat16, "cpu").state_dict()
    for name in experts:
        group = names.group_of(name)
        assert group.is_plain is not transposed
        loaded = group.check_round_trip({name: tensors[name]})
        assert torch.equal(loaded[name], state[name])


def test_headers_are_read_of_all_files_of_an_index(tmp_path: Path) -> None:
    tiny.model(tmp_path / "many", shard="50KB")
    tiny.model(tmp_path / "one")
    many, one = (checkpoint_files.tensors_of(tmp_path / name) for name in ("many", "one"))
    assert len({tensor.file for tensor in many.values()}) > 2
    assert {(name, tensor.shape, tensor.dtype, tensor.size) for name, tensor in many.items()} == {
        (name, tensor.shape, tensor.dtype, tensor.size) for name, tensor in one.items()
    }
    stored = load_file(tmp_path / "one/model.safetensors")
    assert {name: tensor.size for name, tensor in one.items()} == {name: t.nbytes for name, t in stored.items()}


@pytest.mark.parametrize(
    ("name", "message"), [("T5", "an encoder with a decoder"), ("BERT", "reads texts in both directions")]
)
def test_what_is_no_causal_language_model_is_refused(tmp_path: Path, name: str, message: str) -> None:
    families.write(families.ALL[name], tmp_path)
    with pytest.raises(UserError, match=message):
        checkpoint_names.of_folder(tmp_path)
