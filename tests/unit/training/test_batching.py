from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import rounding
from transformers import AutoModelForCausalLM

from lockstep.data.collator import IGNORE, Collator, PackingCollator
from lockstep.training import loss, packed_attention, row_isolation
from lockstep.training.batching import WindowCollator, WindowSampler, assign_passes


@given(st.integers(1, 60), st.integers(1, 16), st.integers(0, 5))
def test_windows_hold_every_row_once_in_an_order_of_seed_and_epoch(count: int, window: int, epoch: int) -> None:
    sampler = WindowSampler(count, window, seed=3)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler) and found == list(sampler)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3 * 1_000_003 + epoch)).tolist()
    assert [row for one in found for row in one] == order
    assert {len(one) for one in found[:-1]} <= {window}


def test_epochs_and_seeds_differ() -> None:
    sampler = WindowSampler(50, 1, 0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first != list(WindowSampler(50, 1, 1))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_a_plan_gives_each_row_to_one_process_and_keeps_passes_within_their_limit(
    lengths: list[int], rows: int, processes: int, packed: bool
) -> None:
    limit = rows * 200
    shares = assign_passes(lengths, limit, None if packed else rows, processes)
    assert len(shares) == processes and len({len(share) for share in shares}) == 1
    assert sorted(place for share in shares for one in share for place in one) == list(range(len(lengths)))
    for share in shares:
        for one in (one for one in share if len(one) > 1):
            sizes = [lengths[place] for place in one]
            assert (sum(sizes) if packed else len(one) * max(sizes)) <= limit
            assert packed or len(one) <= rows
    assert lengths[shares[0][0][0]] == max(lengths)  # the longest row comes first


def rows(*sizes: int) -> list[dict[str, list[int]]]:
    chance = torch.Generator().manual_seed(1)
    made = []
    for size in sizes:
        ids = torch.randint(3, 500, (size,), generator=chance).tolist()
        made.append({"input_ids": ids, "labels": [IGNORE] * (size // 3) + ids[size // 3 :]})
    return made


@pytest.mark.parametrize("sizes", [(7,), (5, 17, 9), (3, 3, 3, 30), (1, 8)])
def test_rows_laid_end_to_end_have_the_loss_and_gradients_of_padded_rows_and_of_rows_alone(
    tiny_model: Path, sizes: tuple[int, ...]
) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    chosen = rows(*sizes)

    def measured(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch in batches:
            part, tokens = loss.loss_sum(model, batch)
            part.backward()
            total, count = total + part.detach(), count + tokens
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        return gradients | {"loss": total, "count": torch.tensor(count)}

    row_by_row = [Collator(0)([row]) for row in chosen]
    alone, exact = measured(network, row_by_row), measured(rounding.in_float64(network), row_by_row)
    for batch in (Collator(0)(chosen), PackingCollator()(chosen)):
        rounding.assert_as_exact(measured(network, [batch]), alone, exact)


def test_packed_rows_do_not_see_each_other(tiny_model: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    first, second, other = rows(9, 12, 9)

    def logits(model: torch.nn.Module, laid: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Of the second row, which comes last."""
        with torch.no_grad():
            return {"logits": loss.supervised_logits(model, PackingCollator()(laid))[0][-8:]}

    alone, exact = logits(network, [second]), logits(rounding.in_float64(network), [second])
    for before in (first, other):
        rounding.assert_as_exact(logits(network, [before, second]), alone, exact)


def test_models_in_which_rows_would_see_each_other_are_known(tiny_model: Path) -> None:
    from transformers import AutoConfig

    packed_attention.register()
    network = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.bfloat16, attn_implementation=packed_attention.NAME
    )
    assert row_isolation.rows_stay_apart(network, 512)
    config = AutoConfig.for_model("mamba", vocab_size=512, hidden_size=32, num_hidden_layers=1, state_size=4)
    network = AutoModelForCausalLM.from_config(config).train()  # a recurrent state knows no borders
    network.set_attn_implementation(packed_attention.NAME)
    assert not row_isolation.rows_stay_apart(network, 512)
    assert network.training


def test_a_sliding_window_shorter_than_the_rows_is_not_laid_end_to_end() -> None:
    from transformers import AutoConfig

    packed_attention.register()
    config = AutoConfig.for_model("mistral", vocab_size=512, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, sliding_window=64)  # fmt: skip
    network = AutoModelForCausalLM.from_config(config, attn_implementation=packed_attention.NAME)
    assert row_isolation.rows_stay_apart(network, 64)
    assert not row_isolation.rows_stay_apart(network, 65)


def test_what_packing_hands_over() -> None:
    batch = PackingCollator()([{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7]],
        "position_ids": [[0, 1, 0]],
        "labels": [[IGNORE, 6, IGNORE]],
        "borders": [0, 2, 3],
    }


def test_a_shared_beginning_takes_room_once_in_a_pass() -> None:
    made = [{"input_ids": [1] * 50 + [number] * 50, "labels": [IGNORE] * 60 + [number] * 40} for number in range(2, 8)]
    passes = WindowCollator(0, 2, 100, packed=True, share_prefix=True)(made).passes
    assert [batch["input_ids"].shape[1] for batch in passes] == [200, 200]  # 50 shared, and 50 of each of three rows
    assert [int(batch["borders"][0]) for batch in passes] == [50, 50]
