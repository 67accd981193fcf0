"""The bounds on rounding let another order of sums pass, and no wrong formula: in float32 and in bfloat16."""

from collections.abc import Callable

import pytest
import torch
from support import rounding
from torch import Tensor

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
Tensors = dict[str, Tensor]
SCALE, KEPT = 2.0, 0.75


def given(dtype: torch.dtype) -> Tensors:
    """x [40, 96], W [64, 96], A [4, 96], B [64, 4] and a mask of x, with values that the dtype has."""
    chance = torch.Generator().manual_seed(1)
    shapes = {"x": (40, 96), "w": (64, 96), "a": (4, 96), "b": (64, 4)}
    tensors = {name: torch.randn(shape, generator=chance).to(dtype) for name, shape in shapes.items()}
    return tensors | {"mask": (torch.rand(40, 96, generator=chance) < KEPT).to(dtype)}


def plain(t: Tensors) -> Tensors:
    low = (t["x"] * t["mask"] / KEPT) @ t["a"].T
    return {"y": t["x"] @ t["w"].T + SCALE * (low @ t["b"].T)}


def blockwise(t: Tensors) -> Tensors:
    """The same sum in pieces of twelve inputs, last ones first, and the scale applied elsewhere."""
    total = torch.zeros(40, 64, dtype=t["x"].dtype)
    for start in range(84, -1, -12):
        total += t["x"][:, start : start + 12] @ t["w"][:, start : start + 12].T
    low = (t["x"] * t["mask"]) @ t["a"].T
    return {"y": total + (low @ t["b"].T) * (SCALE / KEPT)}


def without_mask(t: Tensors) -> Tensors:
    return plain(t | {"mask": torch.ones_like(t["mask"])})


def wrong_scale(t: Tensors) -> Tensors:
    return plain(t | {"b": t["b"] * 1.1})


def kept_share_forgotten(t: Tensors) -> Tensors:
    return plain(t | {"x": t["x"], "a": t["a"] * KEPT})


def factor_of_another_layer(t: Tensors) -> Tensors:
    return plain(t | {"a": t["a"].flip(0)})


def row_left_out(t: Tensors) -> Tensors:
    y = plain(t)["y"]
    y[7] = 0
    return {"y": y}


FAULTS = [without_mask, wrong_scale, kept_share_forgotten, factor_of_another_layer, row_left_out]


@DTYPES
def test_another_order_of_sums_is_rounding(dtype: torch.dtype) -> None:
    t = given(dtype)
    exact = plain({name: tensor.double() for name, tensor in t.items()})
    rounding.assert_as_exact(blockwise(t), plain(t), exact, dtype)
    rounding.assert_as_exact(plain(t), blockwise(t), exact, dtype)


@DTYPES
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_formula_is_not(fault: Callable[[Tensors], Tensors], dtype: torch.dtype) -> None:
    t = given(dtype)
    exact = plain({name: tensor.double() for name, tensor in t.items()})
    with pytest.raises(AssertionError, match="is rounding"):
        rounding.assert_as_exact(fault(t), plain(t), exact, dtype)


def test_in_float32_a_scale_that_is_a_hundred_thousandth_off_is_seen() -> None:
    t = given(torch.float32)
    exact = plain({name: tensor.double() for name, tensor in t.items()})
    with pytest.raises(AssertionError, match="is rounding"):
        rounding.assert_as_exact({"y": plain(t)["y"] * (1 + 1e-5)}, plain(t), exact)


def test_a_tensor_that_is_missing_is_not_passed_over() -> None:
    one = {"y": torch.ones(3)}
    with pytest.raises(AssertionError):
        rounding.assert_as_exact(one, one | {"z": torch.ones(3)}, one)
    with pytest.raises(AssertionError):
        rounding.assert_as_exact({}, {}, {})


@DTYPES
def test_a_product_is_within_the_roundings_of_its_terms_and_a_wrong_one_is_not(dtype: torch.dtype) -> None:
    t = given(dtype)
    x, w = t["x"].double(), t["w"].double()
    exact, size = x @ w.T, x.abs() @ w.T.abs()
    # float32 sums 96 products; in bfloat16 they are summed in float32, and the sum is rounded once
    roundings = 96 if dtype == torch.float32 else 1
    rounding.assert_rounded(t["x"] @ t["w"].T, exact, size, roundings, dtype)
    for wrong in (t["x"] @ t["w"].T.flip(1), (t["x"] @ t["w"].T) * 1.1, t["x"][:, :-1] @ t["w"][:, :-1].T):
        with pytest.raises(AssertionError, match="beyond rounding"):
            rounding.assert_rounded(wrong, exact, size, roundings, dtype)
