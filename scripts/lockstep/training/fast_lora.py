"""The pass of LoRA adapters, fast on CPUs and GPUs.

PEFT's own forward pass draws a dropout mask for every layer, casts weights and activations back and
forth, and adds up in separate operations. On a CPU that is half of the time. The pass here computes the
same sum, base + scale · B · A · dropout(x), and for layers that read the same input, such as q, k and
v, all at once. On a CPU, 4-bit weights are dequantized once and kept. On a GPU, where memory is
scarce and dequantizing is quick, that is done for each product.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lockstep.model import networks
from lockstep.model.peft_adapter import NAME
from lockstep.training.fast_experts import FastExperts

# Layers of one module that read the same input. Where a model's do not, the result is the same, only slower.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Seeds(threading.local):
    """Where this thread's masks come from: torch's generator, if it has none of its own."""

    generator: torch.Generator | None = None


_seeds = _Seeds()


@contextmanager
def masks_of(seed: int) -> Iterator[None]:
    """Masks of this thread come from a generator of their own, whatever other threads draw."""
    _seeds.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        _seeds.generator = None


def draw_mask(x: Tensor, p: float) -> Tensor:
    """int16 of x's shape, or bool on a GPU: 0 with probability p, else 1.

    On a CPU, drawing masks with torch takes a fifth of a step, and multiplying by bools another. So bits come
    from SFC64, seeded by torch's generator: a training checkpoint needs to keep only that one, and gradient
    checkpointing, which sets it back, sees the same masks again. On a GPU its own generator does both.
    """
    if x.is_cuda:
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(_kept(p))
    seed = int(torch.randint(2**62, (), generator=_seeds.generator))
    # as random_raw(), which would keep other threads waiting
    words = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-x.numel() // 4), dtype=np.uint64)
    bits = torch.from_numpy(words.view(np.int16))[: x.numel()].view(x.shape)
    return torch.ge(bits, round(p * 2**16) - 2**15, out=torch.empty_like(bits))


def _kept(p: float) -> float:
    """The share that is not dropped, as `draw_mask` rounds it."""
    return 1 - round(p * 2**16) / 2**16


def drop(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is 1, else 0. Two-byte floats are multiplied as integers, which is exact and needs no cast."""
    return (x.view(torch.int16) * mask).view(x.dtype) if x.element_size() == 2 else x * mask


class _Whole:
    """Frozen layers with the same input as one matrix; 4-bit weights are dequantized and kept."""

    def __init__(self, layers: list[Any]) -> None:
        bases = [layer.base_layer for layer in layers]
        parts = [
            networks.dequantize(b) if _is_4bit(layer) else b.weight for layer, b in zip(layers, bases, strict=True)
        ]
        self.sizes = [len(part) for part in parts]
        self.weight = parts[0] if len(parts) == 1 else torch.cat([part.detach() for part in parts])
        self.dtype = self.weight.dtype
        for layer, base, rows in zip(layers, bases, self.weight.detach().split(self.sizes), strict=True):
            if not _is_4bit(layer):
                base.weight.data = rows  # one copy in memory
        biases = [rows.new_zeros(len(part)) if b.bias is None else b.bias for b, part in zip(bases, parts, strict=True)]
        self.bias = None if all(b.bias is None for b in bases) else torch.cat([bias.detach() for bias in biases])

    def outputs(self, x: Tensor) -> Sequence[Tensor]:
        """x [tokens, in] → each layer's x Wᵀ + b [tokens, out]."""
        output = nn.functional.linear(x, self.weight, self.bias)
        # a view that is made inside an autograd function cannot be changed in place, as Gemma 3n and Llama 4 do
        return torch.split(output, self.sizes, 1) if len(self.sizes) > 1 else [output]

    def of_input(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient of x from those of the outputs."""
        return (gradients[0] if len(gradients) == 1 else torch.cat(list(gradients), 1)) @ self.weight


class _FourBit:
    """The same of 4-bit layers on a GPU: no more than one weight is dequantized at a time, and none is kept."""

    def __init__(self, layers: list[Any]) -> None:
        self.bases = [layer.base_layer for layer in layers]
        self.dtype = self.bases[0].compute_dtype

    def outputs(self, x: Tensor) -> Sequence[Tensor]:
        """As `_Whole.outputs`."""
        return [nn.functional.linear(x, networks.dequantize(base), base.bias) for base in self.bases]

    def of_input(self, gradients: Sequence[Tensor]) -> Tensor:
        """As `_Whole.of_input`."""
        total = gradients[0] @ networks.dequantize(self.bases[0])
        for gradient, base in zip(gradients[1:], self.bases[1:], strict=True):
            total.addmm_(gradient, networks.dequantize(base))
        return total


class _FrozenPlusLora(torch.autograd.Function):
    """x Wᵀ + b + scale · (dropped x) Aᵀ Bᵀ of some layers with the same input; W is frozen.

    A and B are cast to x's dtype, their gradients back.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, frozen: _Whole | _FourBit, mask: Tensor | None, scales: tuple[float, ...], *factors: Tensor
    ) -> tuple[Tensor, ...]:
        """x [tokens, in], each layer's A [r, in] and then each one's B [out, r] → each one's [tokens, out]."""
        a = torch.cat(factors[: len(scales)]).to(x.dtype)
        bs = [b.to(x.dtype) for b in factors[len(scales) :]]
        seen = x if mask is None else drop(x, mask)
        low = seen @ a.t()
        parts, lows = frozen.outputs(x), torch.split(low, [b.shape[1] for b in bs], 1)
        for part, b, scale, own_low in zip(parts, bs, scales, lows, strict=True):
            part.addmm_(own_low, b.t(), alpha=scale)
        ctx.save_for_backward(seen, mask, low, a, *bs)
        ctx.frozen, ctx.scales = frozen, scales
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, and of each A and B."""
        seen, mask, low, a, *bs = ctx.saved_tensors
        ranks = [b.shape[1] for b in bs]
        of_low = torch.cat([(g @ b).mul_(s) for g, b, s in zip(gradients, bs, ctx.scales, strict=True)], 1)
        of_a = (of_low.t() @ seen).float().split(ranks)
        of_b = [
            (own_low.t() @ g).t().float().mul_(s)
            for g, own_low, s in zip(gradients, low.split(ranks, 1), ctx.scales, strict=True)
        ]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = ctx.frozen.of_input(gradients)
            if mask is None:
                of_x.addmm_(of_low, a)
            else:
                of_x += drop(of_low @ a, mask)
        return of_x, None, None, None, *of_a, *of_b


class _Held(threading.local):
    """What one thread has computed of siblings, and not all of them have fetched."""

    def __init__(self) -> None:
        self.input: Tensor | None = None  # holding it keeps its identity
        self.outputs: dict[int, Tensor] = {}


class _Siblings:
    """The adapted layers of a module that read the same input: the first that is called computes for all."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        on_gpu = layers[0].base_layer.weight.is_cuda
        self.frozen = (_FourBit if on_gpu and _is_4bit(layers[0]) else _Whole)(layers)
        self.factors = [getattr(layer, name)[NAME].weight for name in ("lora_A", "lora_B") for layer in layers]
        self.scales = tuple(layer.scaling[NAME] for layer in layers)
        p = layers[0].lora_dropout[NAME]
        self.p = p.p if isinstance(p, nn.Dropout) else 0.0
        self.held = _Held()

    def output(self, number: int, x: Tensor) -> Tensor:
        """What layer `number` makes of x."""
        held = self.held
        if held.input is not x or number not in held.outputs:
            held.input, held.outputs = x, dict(enumerate(self._all(x)))
        output = held.outputs.pop(number)
        if not held.outputs:
            held.input = None
        return output.view(*x.shape[:-1], -1)

    def _all(self, x: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1]).to(self.frozen.dtype)
        p = self.p if self.layers[0].training else 0.0
        mask = draw_mask(flat, p) if p else None
        scales = tuple(scale / _kept(p) for scale in self.scales)
        return _FrozenPlusLora.apply(flat, self.frozen, mask, scales, *self.factors)  # type: ignore[no-any-return, no-untyped-call]


class FastPass:
    """Computes the adapters of a model by `_FrozenPlusLora`, and gives PEFT's own pass back on request.

    Args:
        model: a PEFT model on a CPU or a GPU.
        required: whether to compute so; None: where memory allows it. A resumed training must compute as it did before.

    Attributes:
        layers: how many linear layers are computed so. 0: not for this kind of adapter, or too little memory
            for the dequantized weights.
        experts: those that are computed so; always, as that keeps no weights in memory.
        whole: no adapted layer is left to PEFT, and passes may be computed side by side.
    """

    def __init__(self, model: nn.Module, required: bool | None = None) -> None:
        adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
        plain = [layer for layer in adapted if _is_plain(layer)]
        bases = [layer.base_layer for layer in plain if _is_4bit(layer)]
        four_bit = sum(base.in_features * base.out_features for base in bases)
        on_cpu = next(model.parameters()).device.type == "cpu"
        fits = not on_cpu or four_bit * 4 <= psutil.virtual_memory().available // 2
        if not (fits if required is None else required):
            plain = []
        self.groups: list[_Siblings] = []
        for together in _grouped(model, plain):
            self.groups.append(_Siblings(together))
            for number, layer in enumerate(together):
                _replace(layer, number, self.groups[-1])
        self.layers = len(plain)
        self.experts = FastExperts(model)
        self.whole = 0 < len(plain) + self.experts.wrappers == len(adapted) and not self.experts.turns

    def forget(self) -> None:
        """Release what a failed pass left behind, which would keep all of that pass in memory."""
        for group in self.groups:
            group.held = _Held()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """PEFT's own forward pass of the layers, for as long as the block lasts."""
        layers = [layer for group in self.groups for layer in group.layers]
        ours = [layer.__dict__.pop("forward") for layer in layers]
        try:
            yield
        finally:
            for layer, forward in zip(layers, ours, strict=True):
                layer.forward = forward

    def undo(self, model: nn.Module) -> None:
        """PEFT's own forward pass again, and the dequantized weights freed."""
        for group in self.groups:
            for layer in group.layers:
                del layer.forward  # the instance's own
        self.groups.clear()
        self.experts.undo()


def _replace(layer: Any, number: int, group: _Siblings) -> None:
    own = layer.forward

    def forward(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        if layer.disable_adapters or layer.merged:
            return own(x, *rest, **named)  # type: ignore[no-any-return]
        return group.output(number, x)

    layer.forward = forward


def _grouped(model: nn.Module, layers: list[Any]) -> list[list[Any]]:
    """The layers, siblings together."""
    left, groups = dict.fromkeys(layers), []
    for module in model.modules():
        for names in SIBLINGS:
            together: list[Any] = [layer for name in names if (layer := getattr(module, name, None)) in left]
            alike = {(layer.base_layer.in_features, _is_4bit(layer)) for layer in together}
            if len(together) > 1 and len(alike) == 1:
                groups.append(together)
                for layer in together:
                    del left[layer]
    return [*groups, *([layer] for layer in left)]


def _is_4bit(layer: Any) -> bool:
    return any(layer.base_layer is base for _, base in networks.linear4bit(layer))


def _is_plain(layer: Any) -> bool:
    """Whether a LoRA layer is base + scale · B · A · x and nothing more, with a frozen base."""
    base = layer.base_layer
    return (
        isinstance(base, nn.Linear)
        and layer.active_adapters == [NAME]
        and not layer.lora_variant
        and not layer.lora_bias[NAME]
        and not layer.fan_in_fan_out
        and not base.weight.requires_grad
    )
