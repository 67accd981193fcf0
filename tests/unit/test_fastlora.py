"""The adapters' fast pass computes what PEFT computes."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from lockstep import fastlora, loss, models
from lockstep.collator import IGNORE, Collator
from lockstep.sections import Quantization

ROWS = [{"input_ids": list(range(10, 10 + n)), "labels": [IGNORE] * 3 + list(range(13, 10 + n))} for n in (7, 15)]


def adapted(folder: Path, dropout: float, quantized: bool, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    base = models.load(folder, dtype, "cpu", Quantization() if quantized else None)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def measured(model: torch.nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total, _ = loss.loss_sum(model, Collator(0)(ROWS))
    total.backward()
    return total.item(), {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # qwen2 has biases
def test_loss_and_gradients_are_pefts(tmp_path: Path, kind: str, quantized: bool) -> None:
    model = adapted(tiny.model(tmp_path / "m", kind=kind), 0.0, quantized).train()
    theirs = measured(model)
    fast = fastlora.FastPass(model)
    assert fast.layers == 14
    ours = measured(model)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-6)
    fast.undo(model)
    again = measured(model)
    assert again[0] == theirs[0]


def test_with_dropout_the_gradients_are_those_of_the_same_masks(tiny_model: Path) -> None:
    """PEFT's pass, given the masks that ours drew, has our loss and our gradients."""
    model = adapted(tiny_model, 0.3, quantized=False).train()
    other = copy.deepcopy(model)
    fast = fastlora.FastPass(model)
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    draw = fast.dropout.__class__.__call__

    def recorded(self, x, p):  # type: ignore[no-untyped-def]
        found = draw(self, x, p)
        drawn.append(found)
        return found

    fast.dropout.__class__.__call__ = recorded  # type: ignore[method-assign]
    try:
        ours = measured(model)
    finally:
        fast.dropout.__class__.__call__ = draw  # type: ignore[method-assign]
    masks = iter(drawn)
    kept = 1 - round(0.3 * 2**16) / 2**16

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * next(masks)[1] / kept

    for module in other.modules():
        if isinstance(module, fastlora.LoraLayer):
            module.lora_dropout["default"] = Same()
    theirs = measured(other)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-6)


def test_masks_drop_the_share_that_was_asked_for_and_siblings_share_theirs() -> None:
    dropout, x = fastlora._Dropout(), torch.ones(1000, 999)
    torch.manual_seed(3)
    seen, mask = dropout(x, 0.05)
    assert (~mask).float().mean().item() == pytest.approx(0.05, abs=0.001)
    assert torch.equal(seen, mask.float())
    assert dropout(x, 0.05)[1] is mask
    other = dropout(torch.ones(1000, 999), 0.05)[1]
    assert (~mask & ~other).float().mean().item() == pytest.approx(0.0025, abs=0.0005)  # independent of the last
    torch.manual_seed(3)
    dropout.forget()
    assert torch.equal(dropout(x, 0.05)[1], mask)


def test_evaluation_drops_nothing_and_a_disabled_adapter_is_the_base(tiny_model: Path) -> None:
    model = adapted(tiny_model, 0.5, quantized=False).eval()
    batch = Collator(0)(ROWS)
    with torch.no_grad():
        with_peft = loss.loss_sum(model, batch)[0]
        with model.disable_adapter():
            base = loss.loss_sum(model, batch)[0]
        fastlora.FastPass(model)
        assert loss.loss_sum(model, batch)[0].item() == pytest.approx(with_peft.item(), rel=1e-5)
        with model.disable_adapter():
            assert loss.loss_sum(model, batch)[0].item() == base.item()


def test_gradient_checkpointing_sees_the_same_masks(tiny_model: Path) -> None:
    model = adapted(tiny_model, 0.3, quantized=False).train()
    fastlora.FastPass(model)
    torch.manual_seed(5)
    plain = measured(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(5)
    checkpointed = measured(model)
    assert checkpointed[0] == pytest.approx(plain[0], rel=1e-6)
    for name, gradient in checkpointed[1].items():
        torch.testing.assert_close(gradient, plain[1][name], rtol=1e-5, atol=1e-7)


def test_kinds_of_adapters_that_compute_more_are_left_to_peft(tiny_model: Path) -> None:
    base = models.load(tiny_model, torch.float32, "cpu")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    assert fastlora.FastPass(model).layers == 0
