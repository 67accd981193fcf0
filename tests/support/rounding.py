"""How far two computations of the same thing may lie apart: bounds that follow from arithmetic, not from one processor.

Processors add in other orders, in blocks of other sizes, with or without fused multiply-adds. So the same formula gives
other last digits on each, and a bound that was found by trying holds for the processor it was tried on. What does not
depend on the processor is how large such errors are, and both bounds here are made of that:

- `assert_as_exact`: beside the values in question stand those of another implementation (PEFT, transformers, rows one by
  one) in the same dtype, and those of float64. Both implementations round the same terms about equally often, so their
  distances to the exact values are of one size, whatever the processor. Distances are norms over a whole tensor, in which
  the luck of single elements evens out.
- `assert_rounded`: values that are a sum of a few terms lie within a few roundings, each of at most half an epsilon of
  the terms' absolute sum.

A wrong formula is far outside: a scale that is wrong by a percent moves a tensor by 0.01 of its norm, and the errors of
float32 are near 0.000001, those of bfloat16 in a few layers near 0.01. tests/unit/test_rounding.py shows it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# By how much the error may exceed that of the other implementation. The largest met was 2.1, over code paths of one
# processor that add in other orders: ATEN_CPU_CAPABILITY avx2 and default, ONEDNN_MAX_CPU_ISA SSE41 to AVX512_CORE, and
# MKL_CBWR COMPATIBLE. The rest is room for processors that were not met; in float32 it still is about 1e-6 of a norm.
TIMES = 8
# Roundings by which a single number may be off although the other implementation met the exact one by chance. Over n
# numbers such luck shrinks as 1/√n.
LUCK = 16


def epsilon(dtype: torch.dtype) -> float:
    """The distance from 1 to the next number."""
    return torch.finfo(dtype).eps


def assert_as_exact(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Each of our tensors is as near to the exact one as another implementation's is, up to TIMES.

    Args:
        ours: tensors by name; the others have the same names.
        theirs: computed in the same dtype by another implementation.
        exact: computed in float64.
        dtype: that ours and theirs were computed in, whatever they are kept in.
    """
    assert ours.keys() == theirs.keys() == exact.keys() and ours
    for name, reference in exact.items():
        reference = reference.double()
        own, other = ((side[name].double() - reference).norm().item() for side in (ours, theirs))
        least = epsilon(dtype) * (1 + LUCK / max(1, reference.numel()) ** 0.5) * reference.norm().item()
        allowed = TIMES * max(other, least)
        assert own <= allowed, f"{name}: {own:.3g} from the exact values, and at most {allowed:.3g} is rounding"


def assert_rounded(
    ours: Tensor, exact: Tensor, size: Tensor | float, roundings: int, dtype: torch.dtype = torch.float32
) -> None:
    """Every element is within so many roundings of the exact one.

    Args:
        exact: in float64, or in ours' dtype where it was rounded likewise (count its roundings, too).
        size: what the terms of each element add up to, all taken as positive.
        roundings: operations on the way to an element, one after another: a sum of n products counts n.
        dtype: that was computed in.
    """
    distance = (ours.double() - exact.double()).abs()
    allowed = roundings * epsilon(dtype) * torch.as_tensor(size, dtype=torch.float64)
    worst = (distance - allowed).max().item()
    assert worst <= 0, f"{distance.max().item():.3g} apart, beyond rounding by {worst:.3g}"


def in_float64(model: torch.nn.Module) -> Any:
    """A copy that computes the same function in float64, with PEFT's own pass and 4-bit weights as they are dequantized.

    (transformers keeps a few steps, such as the norms' and the loss, in float32 even then. Their errors are in both
    distances that `assert_as_exact` compares.)
    """
    from peft.tuners.lora import Linear
    from peft.tuners.lora.bnb import Linear4bit

    from lockstep.model import networks

    double = copy.deepcopy(model)
    for module in double.modules():
        module.__dict__.pop("forward", None)  # the fast pass's
    for name, layer in networks.linear4bit(double):
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight.data = networks.dequantize(layer).double()
        if layer.bias is not None:
            plain.bias.data = layer.bias.data.double()
        parent, _, last = name.rpartition(".")
        setattr(double.get_submodule(parent), last, plain.requires_grad_(False))
    for module in double.modules():
        if isinstance(module, Linear4bit):
            module.__class__ = Linear  # the plain layer's pass
    return double.double()
