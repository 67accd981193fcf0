"""The fast pass of adapted experts computes what PEFT computes, and keeps no weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import moe, rounding
from torch import Tensor

from lockstep.model import experts, experts_forward
from lockstep.training import fast_lora

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
WITH_INTERFACE = tuple(name for name in moe.LAYOUTS if name != "Llama 4 text")


@pytest.fixture(scope="module", params=WITH_INTERFACE)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe.written(request.param, tmp_path_factory.mktemp("moe"))


def measured(wrapper: Any, chain: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and all gradients of one layer of experts."""
    hidden, chosen, weights = moe.inputs(wrapper.get_base_layer(), dtype)
    for layer in chain.values():
        layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):  # as in training
        outputs = wrapper(hidden, chosen, weights)
        loss_of(outputs).backward()
    results = {"outputs": outputs.detach(), "hidden": hidden.grad, "weights": weights.grad}
    for leaf, layer in chain.items():
        results |= {f"{leaf}.a": layer.lora_A["default"].weight.grad, f"{leaf}.b": layer.lora_B["default"].weight.grad}
    return {name: tensor.clone() for name, tensor in results.items()}


def loss_of(outputs: Tensor) -> Tensor:
    direction = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3))
    return (outputs.double() * direction.double()).sum()


def exact(wrapper: Any, chain: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    plain, factors = moe.in_float64(wrapper, chain)
    hidden, chosen, weights = moe.inputs(wrapper.get_base_layer(), dtype)
    hidden, weights = hidden.detach().double().requires_grad_(), weights.detach().double().requires_grad_()
    outputs = plain(hidden, chosen, weights)
    loss_of(outputs).backward()
    results = {"outputs": outputs.detach(), "hidden": hidden.grad, "weights": weights.grad}
    return results | {name: factor.grad for name, factor in factors.items()}


@DTYPES
@pytest.mark.parametrize("four_bit", [True, False])
def test_outputs_and_gradients_are_pefts_and_exact(folder: Path, four_bit: bool, dtype: torch.dtype) -> None:
    model = moe.adapted(folder, dtype, four_bit).train()
    wrapper, chain = moe.wrapper_of(model)
    theirs, true = measured(wrapper, chain, dtype), exact(wrapper, chain, dtype)
    fast = fast_lora.FastPass(model)
    assert fast.experts.wrappers == sum(1 for _ in experts.stacks(model.get_base_model()))
    assert fast.whole
    ours = measured(wrapper, chain, dtype)
    rounding.assert_as_exact(ours, theirs, true, dtype)
    assert not ours["down_proj.a"].view(4, 4, -1)[2].any(), "an expert without tokens has a gradient"
    again = measured(wrapper, chain, dtype)
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    fast.undo(model)
    back = measured(wrapper, chain, dtype)
    assert all(torch.equal(theirs[name], back[name]) for name in theirs)


@DTYPES
def test_without_the_adapter_it_is_the_base(folder: Path, dtype: torch.dtype) -> None:
    model = moe.adapted(folder, dtype, True).eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad(), model.disable_adapter():
        theirs = model(input_ids=ids).logits
        fast_lora.FastPass(model)
        assert torch.allclose(model(input_ids=ids).logits.float(), theirs.float(), atol=1e-2)


def test_no_matrix_is_kept_for_the_backward_pass(folder: Path) -> None:
    model = moe.adapted(folder, torch.float32, True).train()
    wrapper, chain = moe.wrapper_of(model)
    matrices = {stack.shape[1:] for stack in experts.stacks_in(wrapper.get_base_layer())}
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    def shapes() -> set[torch.Size]:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            measured(wrapper, chain, torch.float32)
        return {shape[-2:] for shape in kept if shape[-2:] in matrices or shape[-2:][::-1] in matrices}

    assert shapes(), "PEFT's own pass keeps them"
    fast_lora.FastPass(model)
    assert not shapes()


def test_no_token_at_all(folder: Path) -> None:
    model = moe.adapted(folder, torch.float32, True)
    wrapper, chain = moe.wrapper_of(model)
    hidden, chosen, weights = moe.inputs(wrapper.get_base_layer(), torch.float32)
    factors = {
        leaf: experts_forward.Factors(layer.lora_A["default"].weight, layer.lora_B["default"].weight, 2.0)
        for leaf, layer in chain.items()
    }
    outputs = experts_forward.forward(wrapper.get_base_layer(), hidden[:0], chosen[:0], weights[:0], factors)
    assert outputs.shape == hidden[:0].shape
    outputs.sum().backward()


def test_experts_without_the_interface_are_left_to_peft(tmp_path: Path) -> None:
    model = moe.adapted(moe.written("Llama 4 text", tmp_path), torch.float32, True)
    fast = fast_lora.FastPass(model)
    assert fast.experts.wrappers == 0 and not fast.whole and fast.experts.turns


def test_passes_side_by_side_need_all_experts_to_be_ours(folder: Path) -> None:
    """Whole: nothing changes a module while it computes."""
    model = moe.adapted(folder, torch.float32, True)
    assert not fast_lora.FastPass(model).experts.turns
