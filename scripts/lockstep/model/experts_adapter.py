"""Adapters of experts: PEFT's `target_parameters`, on plain experts and on those in 4 bits.

PEFT 0.21 wraps an experts' module once for each parameter that it adapts, in the order of the class, and its pass
adds B · A to all experts of a layer. In 4 bits that needs help, which is here: PEFT sees plain parameters.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from lockstep.errors import UserError
from lockstep.model import experts
from lockstep.settings.schema import Lora

STARTS = ("default", "gaussian")  # the initial values that PEFT can give an adapter of experts


def targets(network: Any, lora: Lora) -> list[str]:
    """Names of the expert parameters that get an adapter, in PEFT's order.

    Args:
        network: transformers' model; may be on the meta device.

    Raises:
        UserError: names in the settings that fit no experts.
    """
    known = [name for name, _ in experts.stacks(network)]
    if lora.target_parameters == ("none",):
        return []
    if lora.target_parameters == ("auto",):
        return known if lora.target_modules == ("all-linear",) else []
    for name in lora.target_parameters:
        if not any(f".{parameter}".endswith(f".{name}") for parameter in known):
            endings = sorted({".".join(parameter.rsplit(".", 2)[1:]) for parameter in known})
            there = f"experts here are {', '.join(endings)}" if endings else "the model has no experts"
            raise UserError(f"--lora.target_parameters: {name} is not found in the model; {there}")
    named = tuple(f".{name}" for name in lora.target_parameters)
    return [parameter for parameter in known if f".{parameter}".endswith(named)]


def check(network: Any, lora: Lora) -> None:
    """Refuse, before weights are loaded, what PEFT cannot do with adapters of experts.

    Args:
        network: transformers' model; may be on the meta device.

    Raises:
        UserError: names the setting, and the way out.
    """
    if not targets(network, lora):
        return
    without = "or --lora.target_parameters none, which leaves the experts as they are"
    if lora.lora_dropout:
        raise UserError(
            f"--lora.lora_dropout {lora.lora_dropout}: the model has experts, and PEFT drops no inputs of theirs: "
            f"set --lora.lora_dropout 0, {without}"
        )
    if lora.use_dora:
        raise UserError(
            f"--lora.use_dora: the model has experts, and PEFT knows no DoRA of those: leave it out, {without}"
        )
    if lora.init_lora_weights not in STARTS:
        raise UserError(
            f"--lora.init_lora_weights {lora.init_lora_weights}: the model has experts, whose adapters PEFT can begin "
            f"with {' or '.join(STARTS)} only: take one of those, {without}"
        )


@contextmanager
def shaped(network: Any) -> Iterator[None]:
    """Have PEFT see the shapes of 4-bit experts as plain parameters, while it attaches or loads an adapter."""
    with ExitStack() as stack:
        for module in network.modules():
            if experts.is_experts(module):
                stack.enter_context(experts.plain(module, experts.shaped))
        yield
    for wrapper, _ in wrappers(network):
        if experts.four_bit_in(wrapper.get_base_layer()) and "forward" not in vars(wrapper):
            experts.dequantized_forward(wrapper, wrapper.get_base_layer())


def wrappers(network: nn.Module) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(the outermost, all of them by the parameter that each adapts) of the wrappers around each module."""
    inner: set[int] = set()
    for module in network.modules():
        if not isinstance(module, ParamWrapper) or id(module) in inner:
            continue
        chain: dict[str, Any] = {}
        wrapper: Any = module
        while isinstance(wrapper, ParamWrapper):
            chain[wrapper.parameter_name] = wrapper
            inner.add(id(wrapper))
            wrapper = wrapper.base_layer
        yield module, chain


def changed(network: nn.Module) -> dict[str, int]:
    """How many experts of each stack the adapter changes; those that no token was sent to, it leaves as they are."""
    names = {id(module): name.replace(".base_layer", "") for name, module in network.named_modules()}
    counts = {}
    for wrapper, chain in wrappers(network):
        for leaf, layer in chain.items():
            (a,), (b,) = ([part.weight for part in side.values()] for side in (layer.lora_A, layer.lora_B))
            number = layer.num_experts
            alive = a.view(number, -1).any(1) & b.view(len(b), -1, number).any(1).any(0)
            counts[f"{names[id(wrapper)]}.{leaf}".removeprefix("base_model.model.")] = int(alive.sum())
    return counts
