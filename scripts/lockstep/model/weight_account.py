"""The account of a network's weights, as it is loaded, quantized and adapted: see `coverage`."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.model import checkpoint_names, experts, networks, peft_adapter
from lockstep.model.checkpoint_names import CheckpointNames
from lockstep.model.coverage import ADAPTER, IDLE_EXPERTS, Account, Weight
from lockstep.model.experts import BLOCK, NESTED_BLOCK
from lockstep.settings.schema import Lora, Quantization

NOT_LOADED = "not loaded by transformers"


def four_bit_weights(network: nn.Module) -> Iterator[tuple[str, int, int]]:
    """(name, parameters, bytes in memory with their scales) of every weight that is held in 4 bits.

    On the meta device, where nothing is quantized, the bytes are those that bitsandbytes will take.
    """
    for path, layer in networks.linear4bit(network):
        weight, count = layer.weight, layer.in_features * layer.out_features
        state = weight.quant_state
        size = packed_size(count, weight.compress_statistics) if state is None else held_size(weight.data, state)
        yield f"{path}.weight", count, size
    for name, stack in experts.stacks(network):
        if stack.four_bit:
            yield name, math.prod(stack.shape), stack.held_bytes


def planned(folder: Path, method: str, lora: Lora | None, quantization: Quantization) -> Account:
    """The account that a training will have, from the shapes in a model's folder alone: nothing is loaded.

    Args:
        method: qlora, lora or full.
        lora: None: as if there were no adapter.

    Raises:
        UserError: the adapter's settings do not fit the model.
    """
    names = checkpoint_names.of_folder(folder)
    network = names.network
    stacks: dict[str, tuple[int, int]] = {}
    if method == "qlora":
        networks.replace_linear_layers(network, quantization)
        for name, stack in experts.stacks(network):
            scales = experts.FourBit(stack.shape, stack.dtype, quantization, torch.device("meta")).buffers()
            packed = stack.shape[0] * math.ceil(math.prod(stack.shape[1:]) / 2)
            stacks[name] = math.prod(stack.shape), packed + sum(tensor.nbytes for tensor in scales)
    if method != "full" and lora:
        peft_adapter.attach(network, lora)
    return of_network(network, names, stacks)


def packed_size(count: int, double: bool) -> int:
    """Bytes of `count` numbers in 4 bits, with the scales of their blocks.

    Args:
        double: the scales are quantized to 8 bits, with scales of their own.
    """
    blocks = math.ceil(count / BLOCK)
    return math.ceil(count / 2) + (blocks + 4 * math.ceil(blocks / NESTED_BLOCK) if double else 4 * blocks)


def held_size(packed: Tensor, state: Any) -> int:
    """The same of a tensor that bitsandbytes has quantized, as it lies in memory."""
    scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in (packed, *scales))


def of_network(network: nn.Module, names: CheckpointNames, planned: Mapping[str, tuple[int, int]] = {}) -> Account:
    """The account of a network as it is loaded, quantized and adapted.

    Args:
        network: the base, inside a PEFT model where there is an adapter.
        names: of its checkpoint, which may hold tensors that transformers does not load.
        planned: (parameters, bytes) of what would be in 4 bits if it were loaded, by name.
    """
    adapted = peft_adapter.adapted_weights(network)
    text = {peft_adapter.plain_name(name) for name in networks.text_parameters(network)}
    quantized = dict(planned)
    for name, count, size in four_bit_weights(network):
        quantized[peft_adapter.plain_name(name) or name] = (count, size)
    stacks = {name for name, _ in experts.stacks(network)}
    weights = {}
    for name in names.unloaded:
        weights[name] = Weight(math.prod(names.tensors[name].shape), 0, "unused_by_text", NOT_LOADED)
    for name, module, parameter in _base_parameters(network):
        in_4bit = name in quantized
        count, size = quantized.get(name, (parameter.numel(), parameter.numel() * parameter.element_size()))
        if name not in text:
            group = "unused_by_text"
        else:
            changed = "adapted" if name in adapted or parameter.requires_grad else "frozen"
            group = f"{changed}_{'4bit' if in_4bit else '16bit'}"
        weights[name] = Weight(
            count, size, group, _reason(name, module, parameter, group, name in adapted, name in stacks)
        )
    return Account(weights)


def _base_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """(plain name, module, parameter) of every parameter that is the base's own; tied ones once."""
    seen: set[int] = set()
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = peft_adapter.plain_name(f"{path}.{name}" if path else name)
            if plain is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield plain, module, parameter


def _reason(name: str, module: nn.Module, parameter: Tensor, group: str, lora: bool, stack: bool) -> str:
    """Why a parameter is in its group, in a few words.

    Args:
        lora: whether an adapter changes it.
        stack: whether it is a stack of experts.
    """
    if group == "unused_by_text":
        return f"{name.removeprefix('model.').partition('.')[0]} is no part of the text decoder"
    if group.startswith("adapted"):
        return ADAPTER if lora else "trained whole"
    return IDLE_EXPERTS if stack else _kind(name, module, parameter)


def _kind(name: str, module: nn.Module, parameter: Tensor) -> str:
    """What a frozen parameter is."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if name.endswith("lm_head.weight"):
        return "output layer"
    if parameter.ndim == 1 or name.endswith("bias"):
        return "norm, bias or other vector"
    if "Conv" in type(module).__name__:
        return "convolution"
    return "linear layer without an adapter" if isinstance(module, nn.Linear) else "router or other matrix"
