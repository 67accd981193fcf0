from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support import rounding, tiny
from transformers import AutoModelForCausalLM

from lockstep.data.collator import IGNORE, Collator, PackingCollator, common_prefix
from lockstep.training import loss, packed_attention, row_isolation

Rows = list[dict[str, list[int]]]


def rows(*sizes: int, shared: int = 0) -> Rows:
    chance = torch.Generator().manual_seed(1)
    head = list(range(30, 30 + shared))
    made = []
    for size in sizes:
        ids = head + torch.randint(3, 500, (size,), generator=chance).tolist()
        silent = shared + max(1, size // 3)
        made.append({"input_ids": ids, "labels": [IGNORE] * silent + ids[silent:]})
    return made


def measured(
    network: torch.nn.Module, batches: list[dict[str, torch.Tensor]], in_pieces: bool = False
) -> dict[str, torch.Tensor]:
    """The summed loss of all batches, and its gradients by name."""
    network.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        part, _ = loss.loss_sum(network, batch, in_pieces)
        part.backward()
        total += part.detach()
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    assert gradients
    return gradients | {"loss": total}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("shared", [0, 1, 9])
@pytest.mark.parametrize(("sizes", "block"), [((7,), 3), ((5, 17, 9), 160), ((3, 3, 3, 40), 7), ((2, 8), 160)])
def test_rows_laid_end_to_end_have_the_loss_and_gradients_that_they_have_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shared: int, sizes: tuple[int, ...], block: int
) -> None:
    monkeypatch.setattr(packed_attention, "BLOCK", block)
    packed_attention.register()
    network = AutoModelForCausalLM.from_pretrained(tiny.model(tmp_path / "m", kind=kind), dtype=torch.float32).train()
    chosen = rows(*sizes, shared=shared)
    row_by_row = [Collator(0)([row]) for row in chosen]
    alone, exact = measured(network, row_by_row), measured(rounding.in_float64(network), row_by_row)
    network.set_attn_implementation(packed_attention.NAME)
    computed = _count_calls(monkeypatch)
    for share in (False, True):
        batch = PackingCollator(share)(chosen)
        assert int(batch["borders"][0]) == (shared if share and len(sizes) > 1 else 0)
        rounding.assert_as_exact(measured(network, [batch]), alone, exact)
    assert len(computed) == 4, "two layers, twice"


def _count_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The borders of each call of our attention; empty where another one computes."""
    calls: list[tuple[int, ...]] = []
    apply = packed_attention._Rows.apply

    def counted(*given: object) -> object:
        calls.append(given[-1])
        return apply(*given)

    monkeypatch.setattr(packed_attention._Rows, "apply", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [None, "rows see each other", "another scale"])
def test_attention_of_rows_is_as_exact_as_torchs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fault: str | None
) -> None:
    """And a fault in it is not taken for rounding, in neither dtype."""
    monkeypatch.setattr(packed_attention, "BLOCK", 7)
    chance, borders = torch.Generator().manual_seed(1), (0, 5, 24, 40)
    whole = [torch.randn(1, heads, borders[-1], 16, generator=chance) for heads in (4, 2, 2)]
    ours_scale = 16**-0.5 * (1.1 if fault == "another scale" else 1)
    ours_borders = (0, 24, 40) if fault == "rows see each other" else borders

    def measured_by(attend: Callable[..., torch.Tensor], kind: torch.dtype) -> dict[str, torch.Tensor]:
        given = [tensor.to(dtype).to(kind, copy=True).requires_grad_() for tensor in whole]
        out = attend(*given)
        out.double().square().sum().backward()
        return {"out": out.detach()} | {name: tensor.grad for name, tensor in zip("qkv", given, strict=True)}

    def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows = [
            torch.nn.functional.scaled_dot_product_attention(
                *(tensor[:, :, start:end] for tensor in (q, k, v)), is_causal=True, enable_gqa=True
            )
            for start, end in pairwise(borders)
        ]
        return torch.cat(rows, 2).transpose(1, 2)

    ours = measured_by(lambda q, k, v: packed_attention._Rows.apply(q, k, v, ours_scale, ours_borders), dtype)
    theirs, exact = measured_by(by_torch, dtype), measured_by(by_torch, torch.float64)
    if fault is None:
        rounding.assert_as_exact(ours, theirs, exact, dtype)
    else:
        with pytest.raises(AssertionError, match="is rounding"):
            rounding.assert_as_exact(ours, theirs, exact, dtype)


def test_a_shared_beginning_ends_before_the_first_token_that_carries_loss() -> None:
    same = [{"input_ids": [1, 2, 3, 4, 5], "labels": [IGNORE, IGNORE, IGNORE, 4, 5]}] * 2
    assert common_prefix(same) == 2  # the third token predicts the first supervised one
    assert common_prefix([{"input_ids": [1, 2], "labels": [1, 2]}] * 2) == 0
    assert common_prefix(same[:1]) == 0
    assert PackingCollator(True)(same)["input_ids"].tolist() == [[1, 2, 3, 4, 5, 3, 4, 5]]


def test_attention_with_dropout_is_left_to_the_model(tmp_path: Path) -> None:
    packed_attention.register()
    folder = tiny.model(tmp_path / "m", attention_dropout=0.1)
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=packed_attention.NAME)
    before = torch.get_rng_state()
    assert not row_isolation.rows_stay_apart(network, 32)
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_beyond_ours_is_refused_not_guessed(tmp_path: Path) -> None:
    packed_attention.register()
    folder = tiny.model(tmp_path / "m", kind="gemma2", sliding_window=64, query_pre_attn_scalar=32)
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=packed_attention.NAME)
    assert not row_isolation.rows_stay_apart(network, 32)
    with pytest.raises(packed_attention.Unknown):
        network(torch.tensor([[1, 2, 3]]))
