"""Which parameter each of PEFT's wrappers adapts, and the shapes and sums of stacked updates."""

import pytest
import torch

from lockstep.errors import UserError
from lockstep.model import stacked_update
from lockstep.model.stacked_update import StackedLowRank, parameter_of

EXPERTS = "model.layers.0.mlp.experts"


@pytest.mark.parametrize(
    "targets",
    [
        [f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"],
        ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
        ["gate_up_proj", "down_proj", "gate.weight"],  # as PEFT makes of targets of transformers 4
    ],
)
def test_the_outermost_wrapper_is_the_last_parameter_s(targets: list[str]) -> None:
    below = {EXPERTS: 2}
    assert parameter_of(EXPERTS, below, targets) == f"{EXPERTS}.down_proj"
    assert parameter_of(f"{EXPERTS}.base_layer", below, targets) == f"{EXPERTS}.gate_up_proj"
    assert parameter_of("model.layers.0.self_attn.q_proj", {"model.layers.0.self_attn.q_proj": 1}, targets) is None


def test_a_router_s_matrix_is_one() -> None:
    router = "model.layers.0.mlp.gate"
    assert parameter_of(router, {router: 1}, ["gate_up_proj", "gate.weight"]) == f"{router}.weight"


def test_a_missing_wrapper_is_told() -> None:
    with pytest.raises(UserError, match="incomplete: 1 parameters of"):
        parameter_of(EXPERTS, {EXPERTS: 1}, [f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"])


def test_only_the_targeted_layers_are_wrappers() -> None:
    other = "model.layers.1.mlp.experts"
    assert parameter_of(other, {other: 1}, [f"{EXPERTS}.down_proj"]) is None


@pytest.mark.parametrize("transposed", [False, True])
def test_an_update_is_b_times_a_of_each_expert(transposed: bool) -> None:
    torch.manual_seed(0)
    stored_a, stored_b = torch.randn(2 * 3, 5), torch.randn(7, 2 * 3)  # rank 2, three experts
    a, b = stacked_update.stacked("x", stored_a, stored_b, 2)
    update = StackedLowRank(a, b, 0.5, transposed)
    shape = (3, 5, 7) if transposed else (3, 7, 5)
    assert update.rank == 2 and update.shape == shape and update.fits(shape) and not update.fits(shape[::-1])
    base = torch.randn(shape).bfloat16()
    for expert in range(3):  # PEFT's layout: rank rows of A for each expert, of B every third column
        delta = 0.5 * stored_b.view(7, 2, 3)[:, :, expert] @ stored_a[2 * expert : 2 * expert + 2]
        exact = base[expert].float() + (delta.t() if transposed else delta)
        assert torch.allclose(
            update.added_to(base[expert : expert + 1], slice(expert, expert + 1))[0], exact, atol=1e-6
        )


@pytest.mark.parametrize(("a", "b", "rank"), [((7, 5), (7, 7), 2), ((6, 5), (7, 4), 2), ((6, 5, 1), (7, 6), 2)])
def test_shapes_that_no_number_of_experts_has_are_refused(a: tuple[int, ...], b: tuple[int, ...], rank: int) -> None:
    with pytest.raises(UserError, match="damaged: x has tensors of"):
        stacked_update.stacked("x", torch.zeros(a), torch.zeros(b), rank)


def test_updates_learn_how_the_base_holds_them() -> None:
    update = StackedLowRank(torch.ones(3, 2, 5), torch.ones(3, 5, 2), 1.0)
    assert update.transposed is None
    assert stacked_update.oriented({"x": update, "y": 1}, {"x": True})["x"].transposed is True
