"""Where checkpoints on the Hub are laid out otherwise than what transformers writes for a new model."""

import re

import torch

Tensors = dict[str, torch.Tensor]


def with_mtp(tensors: Tensors) -> Tensors:
    """With a head for several tokens, which transformers does not load."""
    head = {"mtp.fc.weight": torch.randn(64, 128), "mtp.norm.weight": torch.ones(64)}
    return tensors | {name: tensor.bfloat16() for name, tensor in head.items()}


def stacked(tensors: Tensors) -> Tensors:
    """With each layer's experts in one tensor, as Qwen3.5-35B-A3B has them, and the head of `with_mtp`."""
    groups: dict[str, dict[int, torch.Tensor]] = {}
    rest = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*experts)\.(\d+)\.(\w+)\.weight", name):
            groups.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
        else:
            rest[name] = tensor
    layers = {name: torch.stack([group[n] for n in sorted(group)]) for name, group in groups.items()}
    for name in list(layers):
        if name.endswith("gate_proj"):
            gate, up = layers.pop(name), layers.pop(name.replace("gate_proj", "up_proj"))
            layers[name.replace("gate_proj", "gate_up_proj")] = torch.cat((gate, up), dim=1)
    return with_mtp(rest | layers)


def siglip_prefixed(tensors: Tensors) -> Tensors:
    """With the prefix that SigLIP's tensors have in Gemma 3."""
    return {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in tensors.items()}


def convolutions_apart(tensors: Tensors) -> Tensors:
    """OLMo hybrid's convolutions of queries, keys and values, which transformers cuts into equal parts."""
    done = dict(tensors)
    for name in [name for name in tensors if name.endswith("q_conv1d.weight")]:
        names = [name.replace("q_conv1d", f"{part}_conv1d") for part in "qkv"]
        rows = [len(tensors[each.replace("conv1d", "proj")]) for each in names]
        whole = torch.cat([tensors[each] for each in names])
        done |= {each: part.clone() for each, part in zip(names, whole.split(rows), strict=True)}
    return done


def keys_of_sharing_layers(tensors: Tensors, layers: int = 2) -> Tensors:
    """Gemma 4's last layers take keys and values of earlier ones; the files have some for them, which nothing loads.

    Args:
        layers: how many; they are made like the ones as far before.
    """
    prefix = "model.language_model.layers."
    extra = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and part.startswith(("self_attn.k_", "self_attn.v_")):
            extra[f"{prefix}{int(layer) + layers}.{part}"] = tensor.clone()
    return extra | tensors
