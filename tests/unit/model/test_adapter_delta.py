"""The arithmetic of adapters against float64, and which bases one fits; kinds of adapters by PEFT: test_adapter_kinds."""

from dataclasses import replace

import pytest
import torch

from lockstep.errors import UserError
from lockstep.model import adapter_delta
from lockstep.model.adapter_delta import AdapterDelta, LowRank, TrainedRows

WEIGHT = "layer.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merged(delta: AdapterDelta, name: str, weight: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(delta.pieces(name, weight)))


@pytest.fixture(params=[7, 2**21], ids=["blocks of a row", "one block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_delta, "BLOCK", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dora", [False, True])
def test_a_low_rank_update_is_exact_to_float32(dora: bool) -> None:
    weight, a, b = random(9, 7).bfloat16(), random(3, 7, seed=1), random(9, 3, seed=2)
    magnitude = random(9, seed=3).abs() + 0.1 if dora else None
    exact = weight.double() + 0.5 * b.double() @ a.double()
    if magnitude is not None:
        exact *= (magnitude.double() / exact.norm(dim=1))[:, None]
    result = merged(AdapterDelta({WEIGHT: LowRank(a, b, 0.5, magnitude)}), WEIGHT, weight)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_rows_of_an_embedding_change_alone_and_an_update_comes_on_top() -> None:
    weight, rows = random(9, 4).bfloat16(), TrainedRows(torch.tensor([8, 0, 3]), random(3, 4, seed=1))
    expected = weight.float()
    expected[rows.indices] = rows.values
    assert torch.equal(merged(AdapterDelta(rows={EMBEDDING: rows}), EMBEDDING, weight).float(), expected)
    update = LowRank(random(2, 4, seed=2), random(9, 2, seed=3), 2.0)
    both = merged(AdapterDelta({EMBEDDING: update}, rows={EMBEDDING: rows}), EMBEDDING, weight)
    torch.testing.assert_close(both, expected + 2 * update.b @ update.a, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_what_changes_nothing_is_refused_and_what_is_not_named_stays_as_it_is() -> None:
    weight = random(9, 4).bfloat16()
    assert torch.equal(merged(AdapterDelta(), WEIGHT, weight), weight)
    with pytest.raises(UserError, match=r"no effect on layer\.weight"):
        merged(AdapterDelta(whole={WEIGHT: weight.float()}), WEIGHT, weight)
    same_rows = TrainedRows(torch.tensor([1, 2]), weight[1:3].float())
    with pytest.raises(UserError, match=r"no effect on layer\.weight"):
        merged(AdapterDelta(rows={WEIGHT: same_rows}), WEIGHT, weight)
    assert torch.equal(merged(AdapterDelta(whole={WEIGHT: weight + 1}), WEIGHT, weight), weight + 1)


@pytest.mark.parametrize(
    ("delta", "shapes", "message"),
    [
        (AdapterDelta({WEIGHT: LowRank(random(2, 4), random(9, 2), 1.0)}), {WEIGHT: (9, 5)}, "has shape"),
        (AdapterDelta({WEIGHT: LowRank(random(2, 4), random(9, 2), 1.0)}), {}, "is not in base"),
        (AdapterDelta(whole={WEIGHT: random(9, 4)}), {WEIGHT: (8, 4)}, "has shape"),  # no embedding: it cannot grow
        (AdapterDelta(rows={WEIGHT: TrainedRows(torch.tensor([9]), random(1, 4))}), {WEIGHT: (9, 4)}, "has shape"),
        (AdapterDelta(embeddings={EMBEDDING: random(9, 4)}), {EMBEDDING: (8, 4), HEAD: (8, 4)}, "has shape"),
        (AdapterDelta(embeddings={EMBEDDING: random(9, 5)}), {EMBEDDING: (8, 4)}, "has shape"),
        (AdapterDelta(modules_to_save=("lm_head",)), {HEAD: (8, 4)}, "incomplete: lm_head.weight is missing"),
    ],
)
def test_another_base_is_refused(delta: AdapterDelta, shapes: dict[str, tuple[int, int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        delta.check_base(shapes, "base")


def test_a_vocabulary_grows_on_both_sides_and_what_was_trained_on_the_new_rows_fits() -> None:
    grown = {EMBEDDING: random(9, 4), HEAD: random(9, 4, seed=1)}
    rows = {EMBEDDING: TrainedRows(torch.tensor([8]), random(1, 4))}
    AdapterDelta(embeddings=grown, rows=rows).check_base({EMBEDDING: (8, 4), HEAD: (8, 4)}, "base")
    AdapterDelta(embeddings={EMBEDDING: grown[EMBEDDING]}).check_base({EMBEDDING: (8, 4)}, "base")  # tied


def test_tied_tensors_stay_tied_where_training_changed_both_alike() -> None:
    trained, rows = random(9, 4), TrainedRows(torch.tensor([1]), random(1, 4))
    assert AdapterDelta().keeps_tied(EMBEDDING, HEAD)
    assert AdapterDelta(rows={EMBEDDING: rows}).keeps_tied(EMBEDDING, HEAD)
    assert AdapterDelta(rows={EMBEDDING: rows, HEAD: rows}).keeps_tied(EMBEDDING, HEAD)
    others = replace(rows, values=rows.values + 1)
    assert not AdapterDelta(rows={EMBEDDING: rows, HEAD: others}).keeps_tied(EMBEDDING, HEAD)
    assert not AdapterDelta({HEAD: LowRank(random(2, 4), random(9, 2), 1.0)}).keeps_tied(EMBEDDING, HEAD)
    both = {EMBEDDING: trained, HEAD: trained}
    assert AdapterDelta(whole=both, modules_to_save=("embed_tokens", "lm_head")).keeps_tied(EMBEDDING, HEAD)
    assert not AdapterDelta(whole={HEAD: trained}, modules_to_save=("lm_head",)).keeps_tied(EMBEDDING, HEAD)
    left = AdapterDelta(whole=both, rows={HEAD: rows}).without({HEAD})
    assert left.names == {EMBEDDING}


def test_biases_and_modules_that_peft_saves_whole() -> None:
    update = {"a.q_proj.weight": LowRank(random(2, 4), random(9, 2), 1.0)}
    assert not AdapterDelta(update).saves("a.q_proj.bias")
    assert AdapterDelta(update, bias="lora_only").saves("a.q_proj.bias")
    assert not AdapterDelta(update, bias="lora_only").saves("a.k_proj.bias")
    assert AdapterDelta(update, bias="all").saves("a.k_proj.bias")
    assert AdapterDelta(modules_to_save=("norm",)).saves("a.norm.weight")
    assert AdapterDelta(modules_to_save=("a",)).saves("a.norm.weight")
    assert not AdapterDelta(modules_to_save=("norm",)).saves("a.q_proj.weight")
