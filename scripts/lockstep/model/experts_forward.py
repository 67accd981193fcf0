"""The forward pass of experts: tokens sorted by expert, one matrix dequantized at a time, adapters added.

What is computed is what transformers' own implementations compute, for all layouts of its `use_experts_implementation`
(with and without gate, transposed, with biases). But autograd keeps no weights: they are frozen, and the backward
pass dequantizes them again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lockstep.model import experts
from lockstep.model.experts import Stack

Matrices = Callable[[int], Tensor]
Segments = list[tuple[int, int, int]]  # (expert, first row, row after the last) of tokens sorted by expert


@dataclass(frozen=True)
class Factors:
    """A stack's adapter in PEFT's layout.

    Attributes:
        a: [rank · experts, in]: rank rows for each expert.
        b: [out, rank · experts]: of each rank, a column for each expert.
        scale: of the update.
    """

    a: Tensor
    b: Tensor
    scale: float


class _ExpertLinear(torch.autograd.Function):
    """Each row of x times its expert's frozen matrix, plus scale · B · A of that expert."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Matrices, segments: Segments, scale: float, a: Tensor | None, b: Tensor | None
    ) -> Tensor:
        """x [rows, in], sorted by expert; A [experts, rank, in], B [experts, out, rank] → [rows, out]."""
        outputs: Tensor | None = None
        dtype, low = _dtype_of_adapters(x), None
        if a is not None and b is not None:
            # contiguous: small products of strided matrices would each be copied first
            a, b = a.to(dtype).contiguous(), b.to(dtype).contiguous()
            low = x.new_zeros(len(x), a.shape[1], dtype=dtype)
        for expert, start, stop in segments:
            weight = matrix(expert)
            if outputs is None:
                outputs = x.new_zeros(len(x), len(weight))
            part = torch.mm(x[start:stop], weight.t(), out=outputs[start:stop])
            if a is not None and b is not None and low is not None:
                own_low = torch.mm(x[start:stop].to(dtype), a[expert].t(), out=low[start:stop])
                _add_product(part, own_low, b[expert].t(), scale)
        ctx.save_for_backward(x, low, a, b)
        ctx.matrix, ctx.segments, ctx.scale = matrix, segments, scale
        return x.new_zeros(len(x), len(matrix(0))) if outputs is None else outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Gradients of x, A and B."""
        x, low, a, b = ctx.saved_tensors
        of_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        of_a: Any = None if a is None else torch.zeros_like(a)
        of_b: Any = None if b is None else torch.zeros_like(b)
        with _as_given(x):
            for expert, start, stop in ctx.segments:
                own = gradient[start:stop]
                if of_x is not None:
                    torch.mm(own, ctx.matrix(expert), out=of_x[start:stop])
                if a is None:
                    continue
                own = own.to(a.dtype)
                of_low = (own @ b[expert]).mul_(ctx.scale)
                torch.mm(of_low.t(), x[start:stop].to(a.dtype), out=of_a[expert])
                torch.mm(own.t(), low[start:stop], out=of_b[expert])
                if of_x is not None:
                    _add_product(of_x[start:stop], of_low, a[expert], 1.0)
        return of_x, None, None, None, of_a, None if of_b is None else of_b.mul_(ctx.scale)


def _as_given(x: Tensor) -> torch.autocast:
    """A block in which autocast leaves dtypes alone."""
    return torch.autocast(x.device.type, enabled=False)


def _dtype_of_adapters(x: Tensor) -> torch.dtype:
    """That of x on GPUs. On CPUs float32: oneDNN prepares itself for each new shape of two-byte floats, which takes
    longer than the small products of an adapter, and every expert has another number of rows."""
    return torch.float32 if x.device.type == "cpu" else x.dtype


def _add_product(part: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """part += scale · left · right."""
    if part.dtype == left.dtype:
        part.addmm_(left, right, alpha=scale)
    else:
        part.add_(left @ right, alpha=scale)


def forward(
    module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor, adapters: Mapping[str, Factors] | None = None
) -> Tensor:
    """What a layer's experts make of its tokens.

    Args:
        module: of a class with `use_experts_implementation`; its matrices are frozen, plain or in 4 bits.
        hidden: [tokens, width].
        chosen: [tokens, k], the experts of each token.
        weights: [tokens, k], by which their outputs are added.
        adapters: by the name of the parameter that they adapt.

    Returns:
        [tokens, width], in hidden's dtype.
    """
    by_name = {stack.leaf: stack for stack in experts.stacks_in(module)}
    first = "gate_up_proj" if module.has_gate else "up_proj"
    tokens, each = chosen.shape
    order = torch.argsort(chosen.reshape(-1), stable=True)
    sorted_experts = chosen.reshape(-1)[order]
    segments = _segments(sorted_experts, by_name[first].shape[0])
    # rows are gathered by a permutation, so that no two gradients are added to one row in an order that may vary
    repeated = hidden[:, None].expand(tokens, each, -1).flatten(0, 1)
    states = repeated.index_select(0, order).to(by_name[first].dtype)
    states = _linear(module, by_name[first], states, sorted_experts, segments, adapters)
    states = module._apply_gate(states) if module.has_gate else module.act_fn(states)
    down = by_name["down_proj"]
    states = _linear(module, down, states.to(down.dtype), sorted_experts, segments, adapters)
    states = states * weights.reshape(-1)[order][:, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return states.index_select(0, back).view(tokens, each, hidden.shape[-1]).sum(1).to(hidden.dtype)


def _segments(sorted_experts: Tensor, number: int) -> Segments:
    """Where each expert's rows are; experts without any are left out."""
    ends = torch.searchsorted(sorted_experts, torch.arange(number, device=sorted_experts.device), right=True).tolist()
    return [
        (expert, start, stop)
        for expert, (start, stop) in enumerate(zip([0, *ends], ends, strict=False))
        if stop > start
    ]


def _linear(
    module: Any,
    stack: Stack,
    x: Tensor,
    sorted_experts: Tensor,
    segments: Segments,
    adapters: Mapping[str, Factors] | None,
) -> Tensor:
    """One of a layer's two products, with its bias."""
    factors = (adapters or {}).get(stack.leaf)
    a = b = None
    if factors is not None:
        number = stack.shape[0]
        a = factors.a.view(number, -1, factors.a.shape[1])
        b = factors.b.view(len(factors.b), -1, number).permute(2, 0, 1)
    scale = factors.scale if factors else 0.0
    with _as_given(x):
        product: Tensor = _ExpertLinear.apply(x, experts.matrices(stack), segments, scale, a, b)  # type: ignore[no-untyped-call]
    if module.has_bias:
        product = product + getattr(module, f"{stack.leaf}_bias")[sorted_experts]
    return product


def of_four_bit(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """As `forward`, where all matrices are in 4 bits; else what transformers does with plain ones."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    found_plain = any(stack.four_bit is None for stack in experts.stacks_in(module))
    if found_plain or not experts.four_bit_in(module):
        result: Tensor = ALL_EXPERTS_FUNCTIONS["grouped_mm"](module, hidden, chosen, weights)
        return result
    return forward(module, hidden, chosen, weights)
