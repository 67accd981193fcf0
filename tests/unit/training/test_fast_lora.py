"""The adapters' fast pass computes what PEFT computes."""

import copy
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import tiny

from lockstep.data.collator import IGNORE, Collator
from lockstep.model import networks
from lockstep.settings.schema import Quantization
from lockstep.training import fast_lora, loss

ROWS = [{"input_ids": list(range(10, 10 + n)), "labels": [IGNORE] * 3 + list(range(13, 10 + n))} for n in (7, 15)]


def adapted(folder: Path, dropout: float, quantized: bool, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    base = networks.load(folder, dtype, "cpu", Quantization() if quantized else None)
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
    fast = fast_lora.FastPass(model)
    assert fast.layers == 14
    ours = measured(model)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-6)
    weights = [weakref.ref(group.frozen.weight) for group in fast.groups if len(group.layers) > 1]
    assert len(weights) == 4
    fast.undo(model)
    assert not any(one() is not None for one in weights), "the dequantized weights are still there"
    again = measured(model)
    assert again[0] == theirs[0]


def test_with_dropout_the_gradients_are_those_of_the_same_masks(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT's pass, given the masks that ours drew, has our loss and our gradients."""
    model = adapted(tiny_model, 0.3, quantized=False).train()
    other = copy.deepcopy(model)
    fast_lora.FastPass(model)
    drawn: list[torch.Tensor] = []
    draw = fast_lora.draw_mask

    def recorded(x: torch.Tensor, p: float) -> torch.Tensor:
        drawn.append(draw(x, p))
        return drawn[-1]

    monkeypatch.setattr(fast_lora, "draw_mask", recorded)
    ours = measured(model)
    # q, k, v share a mask, then o; gate, up; and down
    masks = iter(mask for number, mask in enumerate(drawn) for _ in range((3, 1, 2, 1)[number % 4]))
    kept = 1 - round(0.3 * 2**16) / 2**16

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * next(masks).view(x.shape) / kept

    for module in other.modules():
        if isinstance(module, fast_lora.LoraLayer):
            module.lora_dropout["default"] = Same()
    theirs = measured(other)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-6)


def test_masks_drop_the_share_that_was_asked_for() -> None:
    x = torch.randn(1000, 999, dtype=torch.bfloat16)
    torch.manual_seed(3)
    mask, other = fast_lora.draw_mask(x, 0.05), fast_lora.draw_mask(x, 0.05)
    assert set(mask.unique().tolist()) == {0, 1}
    assert (mask == 0).float().mean().item() == pytest.approx(0.05, abs=0.001)
    assert ((mask == 0) & (other == 0)).float().mean().item() == pytest.approx(0.0025, abs=0.0005)  # independent
    torch.manual_seed(3)
    assert torch.equal(fast_lora.draw_mask(x, 0.05), mask)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(fast_lora.drop(x.to(dtype), mask), x.to(dtype) * mask.to(dtype))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["up_proj"], ["k_proj", "o_proj", "gate_proj", "up_proj"]])
def test_any_choice_of_layers_is_pefts_too(tiny_model: Path, targets: list[str]) -> None:
    """Of other siblings, too, and with ranks and scales of their own."""
    base = networks.load(tiny_model, torch.float32, "cpu")
    options = LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, rank_pattern={targets[-1]: 2}, alpha_pattern={targets[0]: 3}
    )
    model = get_peft_model(base, options).train()
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    theirs = measured(model)
    assert fast_lora.FastPass(model).layers == 2 * len(targets)
    ours = measured(model)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-6)


def test_evaluation_drops_nothing_and_a_disabled_adapter_is_the_base(tiny_model: Path) -> None:
    model = adapted(tiny_model, 0.5, quantized=False).eval()
    batch = Collator(0)(ROWS)
    with torch.no_grad():
        with_peft = loss.loss_sum(model, batch)[0]
        with model.disable_adapter():
            base = loss.loss_sum(model, batch)[0]
        fast_lora.FastPass(model)
        assert loss.loss_sum(model, batch)[0].item() == pytest.approx(with_peft.item(), rel=1e-5)
        with model.disable_adapter():
            assert loss.loss_sum(model, batch)[0].item() == base.item()


def test_gradient_checkpointing_sees_the_same_masks(tiny_model: Path) -> None:
    model = adapted(tiny_model, 0.3, quantized=False).train()
    fast_lora.FastPass(model)
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
    base = networks.load(tiny_model, torch.float32, "cpu")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    assert fast_lora.FastPass(model).layers == 0


def test_a_training_that_goes_on_is_computed_as_before_whatever_memory_there_is(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> torch.nn.Module:
        base = networks.load(tiny_model, torch.float32, "cpu", Quantization())
        return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))

    assert fast_lora.FastPass(made()).layers == 2 and fast_lora.FastPass(made(), wanted=False).layers == 0
    monkeypatch.setattr(fast_lora.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert fast_lora.FastPass(made()).layers == 0 and fast_lora.FastPass(made(), wanted=True).layers == 2


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj"), ("down_proj",)])
def test_weights_that_stay_in_four_bits_compute_the_same(tmp_path: Path, names: tuple[str, ...]) -> None:
    """As on a GPU, where none is kept."""
    model = adapted(tiny.model(tmp_path / "m", kind="qwen2"), 0.0, quantized=True)
    compared = 0
    for module in model.modules():
        if isinstance(getattr(module, names[0], None), fast_lora.LoraLayer):
            layers = [getattr(module, name) for name in names]
            small, whole = fast_lora._FourBit(layers), fast_lora._Whole(layers)
            assert small.dtype == whole.dtype == torch.float32
            x = torch.randn(5, layers[0].in_features)
            outputs = whole.outputs(x)
            torch.testing.assert_close(list(small.outputs(x)), list(outputs))
            gradients = [torch.randn_like(one) for one in outputs]
            torch.testing.assert_close(small.of_input(gradients), whole.of_input(gradients))
            compared += 1
    assert compared == 2
