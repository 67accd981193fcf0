"""All weights of a network, written as its base's files hold them: after training of all weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lockstep.artifacts import atomic, filenames
from lockstep.model import checkpoint_names, merged_dtypes, networks
from lockstep.model.checkpoint_names import CheckpointNames


def save(network: Any, state: Mapping[str, Tensor] | None, base: Path, out: Path) -> list[str]:
    """Write config and weights: what was trained as it was trained, all else as the base has it.

    Args:
        state: the weights, where the network does not hold them whole (FSDP, ZeRO), else None.
        base: the folder that it was loaded from.

    Returns:
        names in the files of what the base keeps in float32: merged models keep it so, too.

    Raises:
        UserError: transformers' conversion of a name does not lead back.
    """
    names = checkpoint_names.of_folder(base)
    network.config.architectures = [type(names.network).__name__]
    network.config.save_pretrained(out)
    state = network.state_dict() if state is None else state
    trained = networks.text_parameters(names.network)  # FSDP gives the network's own other names
    shards: dict[Path, dict[str, Tensor]] = {tensor.file: {} for tensor in names.tensors.values()}
    for name, tensor in _tensors(names, state, trained):
        shards[names.tensors[name].file][name] = tensor
    for file, tensors in shards.items():
        save_file(tensors, out / file.name, {"format": "pt"})
    if (base / filenames.WEIGHTS_INDEX).exists():
        places = {name: file.name for file, tensors in shards.items() for name in tensors}
        size = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
        atomic.write_json(out / filenames.WEIGHTS_INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    dtypes = merged_dtypes.of_names(names)
    return sorted(name for name, dtype in dtypes.items() if dtype == torch.float32)


def _tensors(names: CheckpointNames, state: Mapping[str, Tensor], trained: set[str]) -> list[tuple[str, Tensor]]:
    """(name in the files, tensor) of all that the files hold."""
    tensors: list[tuple[str, Tensor]] = []
    untouched = list(names.unloaded)
    for group in names.groups:
        if trained & group.parameters.keys():
            weights = {name: state[name].detach().cpu() for name in group.parameters}
            tensors += [(name, tensor.contiguous()) for name, tensor in group.to_file(weights).items()]
        else:
            untouched += group.tensors
    for file in {names.tensors[name].file for name in untouched}:
        with safe_open(file, framework="pt") as opened:
            tensors += [(name, opened.get_tensor(name)) for name in untouched if names.tensors[name].file == file]
    return tensors
