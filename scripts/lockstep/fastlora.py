"""The pass of LoRA adapters, fast on CPUs.

PEFT's own forward pass draws a dropout mask for every layer, casts weights and activations back and
forth, and dequantizes the base weight twice a pass. On a CPU that is half of the time. The pass here
computes the same sum, base + scale · B · A · dropout(x), with the weights that the layer has.
"""

from typing import Any

import numpy as np
import psutil
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lockstep import models
from lockstep.adapters import NAME


class _Dropout:
    """One mask for each input that adapters read: siblings such as q, k and v share theirs.

    Drawing masks is a fifth of a CPU step, and most of that repeats for siblings. Each adapter still
    loses every element of its input with probability p, independently of all others of that input.
    Bits come from SFC64, seeded from torch's generator: the checkpoint of that one is enough, and
    gradient checkpointing, which sets it back, sees the same masks again.
    """

    def __init__(self) -> None:
        self.of: Tensor | None = None  # the input; holding it keeps its identity
        self.kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, p: float) -> tuple[Tensor, Tensor]:
        """(x with dropped elements 0 and the others as they are, which are kept as a bool tensor)."""
        if self.of is not x or self.kept is None:
            seed = int(torch.randint(2**62, ()))
            words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
            bits = torch.from_numpy(words.view(np.int16))[: x.numel()].view(x.shape)
            mask = bits >= round(p * 2**16) - 2**15
            self.of, self.kept = x, (x * mask, mask)
        return self.kept

    def forget(self) -> None:
        """Let go of the last pass."""
        self.of = self.kept = None


class _FrozenPlusLora(torch.autograd.Function):
    """x Wᵀ + b + scale · (dropped x) Aᵀ Bᵀ with W frozen; A and B are cast to x's dtype, their gradients back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float,
                dropped: tuple[Tensor, Tensor] | None) -> Tensor:  # fmt: skip
        """x [..., in], weight [out, in], a [r, in], b [out, r] → [..., out]."""
        flat = x.reshape(-1, x.shape[-1])
        seen, mask = (flat, None) if dropped is None else (part.reshape(flat.shape) for part in dropped)
        a, b = a.to(x.dtype), b.to(x.dtype)
        low = seen @ a.t()
        out = nn.functional.linear(flat, weight, bias).addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(seen, mask, low, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, a and b."""
        seen, mask, low, weight, a, b = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_low = (gradient @ b).mul_(ctx.scale)
        of_a = (of_low.t() @ seen).float()
        of_b = (low.t() @ gradient).t().float().mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            if mask is None:
                of_x.addmm_(of_low, a)
            else:
                of_x += (of_low @ a).mul_(mask)
            of_x = of_x.view(ctx.shape)
        return of_x, None, None, of_a, of_b, None, None


class FastPass:
    """Computes the adapters of a model by `_FrozenPlusLora`, and gives PEFT's own pass back on request.

    Args:
        model: a PEFT model on a CPU.

    Attributes:
        layers: how many layers are computed so. 0: not for this kind of adapter, or too little memory
            for the dequantized weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.dropout = _Dropout()
        found = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)]
        four_bit = sum(
            layer.base_layer.in_features * layer.base_layer.out_features for layer in found if _is_4bit(layer)
        )
        if four_bit * 4 > psutil.virtual_memory().available // 2:
            found = []
        for layer in found:
            self._replace(layer)
        self.layers = len(found)

    def _replace(self, layer: Any) -> None:
        base = layer.base_layer
        weight = models.dequantize(base) if _is_4bit(layer) else base.weight
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        scale, p, own = layer.scaling[NAME], layer.lora_dropout[NAME], layer.forward
        share = p.p if isinstance(p, nn.Dropout) else 0.0

        def forward(x: Tensor, *rest: Any, **named: Any) -> Tensor:
            if layer.disable_adapters or layer.merged:
                return own(x, *rest, **named)  # type: ignore[no-any-return]
            x = x.to(weight.dtype)
            drops = layer.training and share > 0
            dropped = self.dropout(x, share) if drops else None
            kept_scale = scale / (1 - round(share * 2**16) / 2**16) if drops else scale
            return _FrozenPlusLora.apply(x, weight, base.bias, a, b, kept_scale, dropped)  # type: ignore[no-any-return, no-untyped-call]

        layer.forward = forward

    def undo(self, model: nn.Module) -> None:
        """PEFT's own forward pass again, and the dequantized weights freed."""
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.__dict__.pop("forward", None)
        self.dropout.forget()


def _is_4bit(layer: Any) -> bool:
    return any(layer.base_layer is base for _, base in models.linear4bit(layer))


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
