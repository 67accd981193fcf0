"""The adapters' fast pass computes what PEFT computes."""

import copy
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import rounding, tiny

from lockstep.data.collator import IGNORE, Collator
from lockstep.model import networks
from lockstep.settings.schema import Quantization
from lockstep.training import fast_lora, loss

ROWS = [{"input_ids": list(range(10, 10 + n)), "labels": [IGNORE] * 3 + list(range(13, 10 + n))} for n in (7, 15)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
DROPOUT = 0.3


def move_b(model: torch.nn.Module) -> torch.nn.Module:
    """B starts at zero, where A has no gradient and no effect."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def adapted(folder: Path, dropout: float, quantized: bool, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    base = networks.load(folder, dtype, "cpu", Quantization() if quantized else None)
    options = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear")
    return move_b(get_peft_model(base, options))


def measured(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The loss and all gradients by name, computed in a dtype as training does."""
    model.zero_grad()
    with torch.autocast("cpu", dtype) if dtype == torch.bfloat16 else nullcontext():
        total, _ = loss.loss_sum(model, Collator(0)(ROWS))
    total.backward()
    gradients = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    assert len(gradients) > 1
    return gradients | {"loss": total.detach()}


@DTYPES
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # qwen2 has biases
def test_loss_and_gradients_are_pefts(tmp_path: Path, kind: str, quantized: bool, dtype: torch.dtype) -> None:
    model = adapted(tiny.model(tmp_path / "m", kind=kind), 0.0, quantized, dtype).train()
    theirs, exact = measured(model, dtype), measured(rounding.in_float64(model))
    fast = fast_lora.FastPass(model)
    assert fast.layers == 14 and fast.whole
    assert len(list(networks.linear4bit(model))) == (14 if quantized else 0)
    rounding.assert_as_exact(measured(model, dtype), theirs, exact, dtype)
    weights = [weakref.ref(group.frozen.weight) for group in fast.groups if len(group.layers) > 1]
    assert len(weights) == 4
    fast.undo(model)
    assert not any(weight() is not None for weight in weights), "the dequantized weights are still there"
    assert measured(model, dtype)["loss"] == theirs["loss"]


class _Masks:
    """The masks that the fast pass draws, and PEFT's dropout layers that use the same ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: list[torch.Tensor] = []
        draw = fast_lora.draw_mask

        def recorded(x: torch.Tensor, p: float) -> torch.Tensor:
            self.drawn.append(draw(x, p))
            return self.drawn[-1]

        monkeypatch.setattr(fast_lora, "draw_mask", recorded)

    def into(self, model: torch.nn.Module) -> torch.nn.Module:
        # q, k, v share a mask, then o; gate, up; and down
        masks = iter(mask for number, mask in enumerate(self.drawn) for _ in range((3, 1, 2, 1)[number % 4]))
        kept = 1 - round(DROPOUT * 2**16) / 2**16

        class Same(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * next(masks).view(x.shape) / kept

        for module in model.modules():
            if isinstance(module, fast_lora.LoraLayer):
                module.lora_dropout["default"] = Same()
        return model


def faultless(group: fast_lora._Siblings) -> None:
    """The fast pass as it is."""


def wrong_scale(group: fast_lora._Siblings) -> None:
    group.scales = tuple(1.25 * scale for scale in group.scales)


def kept_share_forgotten(group: fast_lora._Siblings) -> None:
    group.scales = tuple(scale * fast_lora._kept(group.p) for scale in group.scales)


def mask_missing(group: fast_lora._Siblings) -> None:
    group.p = 0.0


def factors_swapped(group: fast_lora._Siblings) -> None:
    count = len(group.layers)
    group.factors[:count] = reversed(group.factors[:count])  # the A of siblings are of one shape


FAULTS: list[Callable[[fast_lora._Siblings], None]] = [
    faultless, wrong_scale, kept_share_forgotten, mask_missing, factors_swapped,
]  # fmt: skip


@DTYPES
@pytest.mark.parametrize("fault", FAULTS)
def test_with_dropout_the_gradients_are_those_of_the_same_masks(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[fast_lora._Siblings], None], dtype: torch.dtype
) -> None:
    """PEFT's pass, given the masks that ours drew, has our loss and our gradients; and with a fault it has not."""
    model = adapted(tiny_model, DROPOUT, quantized=False, dtype=dtype).train()
    plain, masks = copy.deepcopy(model), _Masks(monkeypatch)
    fast = fast_lora.FastPass(model)
    assert fast.whole
    for group in fast.groups:
        fault(group)
    ours = measured(model, dtype)
    if fault is mask_missing:  # those that PEFT's layers take, in their order: two rows padded to 16 tokens
        masks.drawn = [fast_lora.draw_mask(torch.empty(32, size), DROPOUT) for size in (64, 128, 64, 128) * 2]
    exact = measured(masks.into(rounding.in_float64(plain)))
    theirs = measured(masks.into(plain), dtype)
    if fault is faultless:
        rounding.assert_as_exact(ours, theirs, exact, dtype)
    else:
        with pytest.raises(AssertionError, match="is rounding"):
            rounding.assert_as_exact(ours, theirs, exact, dtype)


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
    model = move_b(get_peft_model(base, options)).train()
    theirs, exact = measured(model), measured(rounding.in_float64(model))
    assert fast_lora.FastPass(model).layers == 2 * len(targets)
    rounding.assert_as_exact(measured(model), theirs, exact)


def test_evaluation_drops_nothing_and_a_disabled_adapter_is_the_base(tiny_model: Path) -> None:
    model = adapted(tiny_model, 0.5, quantized=False).eval()
    batch = Collator(0)(ROWS)

    def logits(network: torch.nn.Module) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"logits": loss.supervised_logits(network, batch)[0]}

    theirs, exact = logits(model), logits(rounding.in_float64(model))
    with model.disable_adapter():
        base = logits(model)
    assert fast_lora.FastPass(model).whole
    rounding.assert_as_exact(logits(model), theirs, exact)
    with model.disable_adapter():
        assert torch.equal(logits(model)["logits"], base["logits"])


def test_gradient_checkpointing_sees_the_same_masks(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = adapted(tiny_model, DROPOUT, quantized=False).train(), _Masks(monkeypatch)
    reference = copy.deepcopy(model)
    fast_lora.FastPass(model)
    torch.manual_seed(5)
    plain = measured(model)
    exact = measured(masks.into(rounding.in_float64(reference)))
    assert len(masks.drawn) == 8
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(5)
    rounding.assert_as_exact(measured(model), plain, exact)
    assert len(masks.drawn) == 24, "no layer was computed a second time"


def test_kinds_of_adapters_that_compute_more_are_left_to_peft(tiny_model: Path) -> None:
    base = networks.load(tiny_model, torch.float32, "cpu")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    assert fast_lora.FastPass(model).layers == 0


def test_a_training_that_goes_on_is_computed_as_before_whatever_memory_there_is(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model() -> torch.nn.Module:
        base = networks.load(tiny_model, torch.float32, "cpu", Quantization())
        return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))

    assert fast_lora.FastPass(model()).layers == 2 and fast_lora.FastPass(model(), required=False).layers == 0
    monkeypatch.setattr(fast_lora.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert fast_lora.FastPass(model()).layers == 0 and fast_lora.FastPass(model(), required=True).layers == 2


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
            gradients = [torch.randn_like(output) for output in outputs]
            # sums of as many products as a layer has inputs, or all the layers outputs
            weights = [weight.abs() for weight in whole.weight.split(whole.sizes)]
            for own, other, weight in zip(small.outputs(x), outputs, weights, strict=True):
                rounding.assert_rounded(own, other, x.abs() @ weight.T + 1, 2 * len(x[0]))
            size = torch.cat(gradients, 1).abs() @ whole.weight.abs()
            rounding.assert_rounded(small.of_input(gradients), whole.of_input(gradients), size, 2 * sum(whole.sizes))
            compared += 1
    assert compared == 2
