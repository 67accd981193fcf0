from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lockstep import models
from lockstep.batches import WindowSampler
from lockstep.collator import IGNORE, Collator, PackingCollator


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 16), st.integers(0, 5))
def test_each_step_keeps_its_rows_and_sees_the_longest_first(lengths: list[int], window: int, epoch: int) -> None:
    sampler = WindowSampler(lengths, window, seed=3)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(sampler)
    unsorted = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(3 * 1_000_003 + epoch)).tolist()
    for start in range(0, len(order), window):
        chosen = order[start : start + window]
        assert sorted(chosen) == sorted(unsorted[start : start + window])
        assert [lengths[row] for row in chosen] == sorted((lengths[row] for row in chosen), reverse=True)


def test_epochs_and_seeds_differ() -> None:
    sampler = WindowSampler([1] * 50, 1, 0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first != list(WindowSampler([1] * 50, 1, 1))


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

    def measured(batches: list[dict[str, torch.Tensor]]) -> tuple[float, int, list[torch.Tensor]]:
        network.zero_grad()
        total, count = 0.0, 0
        for batch in batches:
            loss, tokens = models.loss_sum(network, batch)
            loss.backward()
            total, count = total + loss.item(), count + tokens
        return total, count, [p.grad.clone() for p in network.parameters() if p.grad is not None]

    alone = measured([Collator(0)([row]) for row in chosen])
    for batch in (Collator(0)(chosen), PackingCollator()(chosen)):
        loss, count, gradients = measured([batch])
        assert count == alone[1] and loss == pytest.approx(alone[0], rel=1e-5)
        for ours, theirs in zip(gradients, alone[2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_packed_rows_do_not_see_each_other(tiny_model: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    first, second, other = rows(9, 12, 9)
    with torch.no_grad():
        one = models.supervised_logits(network, PackingCollator()([first, second]))[0]
        two = models.supervised_logits(network, PackingCollator()([other, second]))[0]
    torch.testing.assert_close(one[-8:], two[-8:], rtol=0, atol=1e-5)


def test_models_in_which_packed_rows_see_each_other_are_known(tiny_model: Path) -> None:
    from transformers import AutoConfig

    assert not models.rows_see_each_other(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16))
    config = AutoConfig.for_model("opt", vocab_size=512, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32)  # fmt: skip
    network = AutoModelForCausalLM.from_config(config).train()
    assert models.rows_see_each_other(network)
    assert network.training


def test_what_packing_hands_over() -> None:
    batch = PackingCollator()([{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7]],
        "position_ids": [[0, 1, 0]],
        "labels": [[IGNORE, 6, IGNORE]],
    }


def test_the_trainer_takes_its_rows_from_the_sampler_in_another_order_each_epoch(
    tiny_model: Path, tmp_path: Path
) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback, TrainingArguments

    from lockstep.trainer import SupervisedTrainer

    data = Dataset.from_list(rows(*[5 + number % 7 for number in range(20)]))
    seen: list[tuple[int, ...]] = []

    class Recording(Collator):
        def __call__(self, chosen):  # type: ignore[no-untyped-def]
            seen.append(tuple(chosen[0]["input_ids"][:3]))
            return super().__call__(chosen)

    class Epochs(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *_, **__):  # type: ignore[no-untyped-def]
            seen.append(())

    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=4, num_train_epochs=3,
        report_to="none", use_cpu=True, remove_unused_columns=False, save_strategy="no", seed=7, disable_tqdm=True,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    trainer = SupervisedTrainer(model=network, args=arguments, train_dataset=data, data_collator=Recording(0), callbacks=[Epochs()])  # fmt: skip
    trainer.train()
    starts = [place for place, one in enumerate(seen) if one == ()]
    epochs = [seen[start + 1 : start + 21] for start in starts]
    beginnings = [tuple(ids[:3]) for ids in data["input_ids"]]
    for number, epoch in enumerate(epochs):
        sampler = WindowSampler([len(ids) for ids in data["input_ids"]], 4, 7)
        sampler.set_epoch(number)
        assert epoch == [beginnings[row] for row in sampler]
    assert epochs[0] != epochs[1] != epochs[2]
