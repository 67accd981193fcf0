"""Tiny models with experts, loaded as training loads them, and the experts' modules in them."""

import copy
from pathlib import Path
from typing import Any

import torch
from support import families
from torch import Tensor
from torch.nn.utils import parametrize

from lockstep.model import experts, experts_adapter, networks, peft_adapter
from lockstep.settings.schema import Lora, Quantization

LORA = Lora(r=4, lora_alpha=8, lora_dropout=0)
# One of each layout: gate and up as one; transposed, interleaved, with biases; without a gate; without transformers'
# interface.
LAYOUTS = ("Qwen3-MoE", "gpt-oss", "Nemotron-H", "Llama 4 text")
TOKENS, EACH = 24, 2


def written(name: str, folder: Path) -> Path:
    return families.write(families.ALL[name], folder)


def adapted(folder: Path, dtype: torch.dtype, four_bit: bool, lora: Lora = LORA) -> Any:
    """PEFT's model with an adapter that has an effect."""
    base = networks.load(folder, dtype, "cpu", Quantization() if four_bit else None)
    torch.manual_seed(0)
    model = peft_adapter.attach(base, lora)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def wrapper_of(model: Any) -> tuple[Any, dict[str, Any]]:
    """The first experts that an adapter wraps: (the outermost wrapper, all by parameter)."""
    return next(experts_adapter.wrappers(model))


def inputs(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, chosen, weights) of an experts' module; the third expert gets no token."""
    up = next(iter(experts.stacks_in(module)))
    generator = torch.Generator().manual_seed(2)
    width = up.shape[1] if up.transposed else up.shape[2]
    hidden = torch.randn(TOKENS, width, generator=generator).to(dtype)
    number = up.shape[0]
    others = torch.tensor([expert for expert in range(number) if expert != 2])
    chosen = torch.stack([others[torch.randperm(number - 1, generator=generator)[:EACH]] for _ in range(TOKENS)])
    weights = torch.rand(TOKENS, EACH, generator=generator).to(dtype)
    return hidden.requires_grad_(), chosen, weights.requires_grad_()


def in_float64(wrapper: Any, chain: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """transformers' own eager experts in float64, with the adapter added to their weights; and its float64 factors."""
    base = wrapper.get_base_layer()
    plain = object.__new__(parametrize.type_before_parametrizations(base))
    torch.nn.Module.__init__(plain)
    attributes = {key: value for key, value in vars(base).items() if not key.startswith("_")}
    vars(plain).update(attributes)
    plain._is_expert_parallel = False
    plain.config = copy.copy(base.config)
    plain.config._experts_implementation = "eager"
    for name, child in base.named_children():
        if name != "parametrizations":
            plain.add_module(name, child)
    factors: dict[str, Tensor] = {}
    for name, bias in base.named_parameters(recurse=False):
        setattr(plain, name, torch.nn.Parameter(bias.detach().double(), requires_grad=False))
    for stack in experts.stacks_in(base):
        weight = torch.stack([stack.matrix(number).detach().double() for number in range(stack.shape[0])])
        layer = chain[stack.leaf]
        a, b = (side["default"].weight.detach().double().requires_grad_() for side in (layer.lora_A, layer.lora_B))
        factors |= {f"{stack.leaf}.a": a, f"{stack.leaf}.b": b}
        each = zip(a.chunk(stack.shape[0]), b.view(len(b), -1, stack.shape[0]).unbind(2), strict=True)
        deltas = torch.stack([own_b @ own_a for own_a, own_b in each]) * layer.scaling["default"]
        plain.__dict__[stack.leaf] = weight + (deltas.mT if stack.transposed else deltas)
        plain._parameters.pop(stack.leaf, None)
    return plain, factors
