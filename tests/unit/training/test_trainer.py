"""The trainer's promises, on a tiny model in float32: what an optimizer step sees depends on its rows alone."""

import json
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support import rounding

from lockstep import paths
from lockstep.data.collator import IGNORE, Collator
from lockstep.errors import UserError
from lockstep.settings import yaml_file
from lockstep.training import loss, probes, setup


def rows(*sizes: int, silent: int = 2) -> Dataset:
    chance = torch.Generator().manual_seed(1)
    made = []
    for number, size in enumerate(sizes):
        ids = torch.randint(3, 500, (size,), generator=chance).tolist()
        some = silent + number % 3  # uneven numbers of supervised tokens
        made.append({"input_ids": ids, "labels": [IGNORE] * some + ids[some:], "row": f"rows.jsonl:{number + 1}"})
    return Dataset.from_list(made)


SIZES = (9, 30, 12, 25, 7, 18, 40, 11)


@pytest.fixture
def build(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(paths, "HOME", tiny_model.parent.parent)  # above both
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path)
    monkeypatch.setattr(paths, "MODELS", tiny_model.parent)

    def made(train: Dataset, held_out: Dataset | None = None, **settings: str) -> setup.Training:
        given = {
            "run": "r", "model.source": "local", "model.path": str(tiny_model), "model.name": tiny_model.name, "method": "lora",
            "train.dtype": "float32", "lora.lora_dropout": "0", "lora.r": "4", "train.learning_rate": "1e-2",
            "train.per_device_train_batch_size": "8", "train.gradient_accumulation_steps": "1", "data.max_length": "64",
        }  # fmt: skip
        found = yaml_file.load(None, given | {name.replace("__", "."): value for name, value in settings.items()})
        return setup.build(found, "cpu", torch.float32, train, held_out, 0, [])

    return made


Measured = dict[str, torch.Tensor]


def step(training: setup.Training, count: int = 8) -> Measured:
    """The loss and the gradients of one step."""
    trainer = training.trainer
    trainer.model.zero_grad()
    mean = trainer.training_step(trainer.model, [trainer.train_dataset[place] for place in range(count)])
    return gradients(trainer.model) | {"loss": mean.detach()}


def gradients(model: torch.nn.Module) -> Measured:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def row_by_row(training: setup.Training, exact: bool) -> Measured:
    """What a step must be: transformers' attention and PEFT's pass over one row after another.

    Args:
        exact: in float64, else in float32.
    """
    model, total, tokens = rounding.in_float64(training.trainer.model), torch.zeros((), dtype=torch.float64), 0
    if not exact:
        model = model.float()
    network = model.get_base_model()
    network.set_attn_implementation("sdpa")
    model.zero_grad()
    for row in training.trainer.train_dataset:
        part, count = loss.loss_sum(network, Collator(0)([row]))
        part.backward()
        total, tokens = total + part.detach(), tokens + count
    return {name: gradient / tokens for name, gradient in gradients(model).items()} | {"loss": total / tokens}


def assert_is_the_step(measured: Measured, training: setup.Training) -> None:
    rounding.assert_as_exact(measured, row_by_row(training, exact=False), row_by_row(training, exact=True))


def move_b(training: setup.Training) -> setup.Training:
    """B starts at zero, and A has no gradient then."""
    for name, weight in training.trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(2))
    return training


@pytest.mark.parametrize(
    "other",
    [
        {"train__per_device_train_batch_size": "1", "train__gradient_accumulation_steps": "8"},
        {"train__per_device_train_batch_size": "3"},
        {"train__padding_free": "false"},
        {
            "train__padding_free": "false",
            "train__per_device_train_batch_size": "1",
            "train__gradient_accumulation_steps": "8",
        },
        {
            "train__padding_free": "false",
            "train__per_device_train_batch_size": "2",
            "train__gradient_accumulation_steps": "4",
        },
        {"train__gradient_checkpointing": "true"},
    ],
)
def test_a_step_does_not_depend_on_how_its_rows_are_laid_out(build: Any, other: dict[str, str]) -> None:
    first = move_b(build(rows(*SIZES)))
    assert first.fast and first.fast.whole and first.trainer.collate.packed
    assert first.trainer.collate.lanes == min(torch.get_num_threads(), 8)
    assert_is_the_step(step(first), first)
    second = build(rows(*SIZES), **other)
    second.trainer.model.load_state_dict(first.trainer.model.state_dict())
    assert second.trainer.collate.packed == ("train__padding_free" not in other)
    assert_is_the_step(step(second), first)


@pytest.mark.parametrize("fault", ["a row is missing", "another scale", "mean of the passes' means"])
def test_a_step_of_another_formula_is_not_taken_for_rounding(
    build: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    training = move_b(
        build(rows(*SIZES), train__per_device_train_batch_size="2", train__gradient_accumulation_steps="4")
    )
    reference = move_b(build(rows(*SIZES)))
    own = training.trainer._part
    if fault == "another scale":
        for group in training.fast.groups:
            group.scales = tuple(1.001 * scale for scale in group.scales)
    elif fault == "mean of the passes' means":

        def mean_of_means(model: Any, supervised: int, batch: Any) -> torch.Tensor:
            return own(model, int((batch["labels"][:, 1:] != IGNORE).sum()) * 4, batch)

        monkeypatch.setattr(training.trainer, "_part", mean_of_means)
    measured = step(training, 7 if fault == "a row is missing" else 8)
    with pytest.raises(AssertionError, match="is rounding"):
        assert_is_the_step(measured, reference)


LANES = {"train__per_device_train_batch_size": "4", "train__gradient_accumulation_steps": "2"}


def test_passes_side_by_side_are_the_same_step_and_the_same_every_time(build: Any) -> None:
    def training(lanes: int, dropout: str) -> setup.Training:
        training = move_b(build(rows(*SIZES), lora__lora_dropout=dropout, **LANES))
        assert training.trainer.collate.lanes == min(torch.get_num_threads(), 4)
        training.trainer.collate = replace(training.trainer.collate, lanes=lanes)
        return training

    for lanes in (1, 2, 3):
        without_dropout = training(lanes, "0")
        assert_is_the_step(step(without_dropout), without_dropout)
    torch.manual_seed(5)
    first = step(training(3, "0.3"))
    for _ in range(5):
        torch.manual_seed(5)
        again = step(training(3, "0.3"))
        assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)


def test_lanes_compute_at_the_same_time(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    training = build(rows(*SIZES), **LANES)
    training.trainer.collate = replace(training.trainer.collate, lanes=2)
    both, own = threading.Barrier(2, timeout=60), training.trainer._part

    def together(*given: Any) -> torch.Tensor:
        both.wait()  # breaks where one lane waits for the other's end
        return own(*given)

    monkeypatch.setattr(training.trainer, "_part", together)
    passes = training.trainer.collate([training.trainer.train_dataset[place] for place in range(8)]).lanes
    assert len(passes) == 2 and len(passes[0]) == len(passes[1])
    step(training)


def test_passes_that_draw_from_the_one_generator_are_computed_in_turn(build: Any) -> None:
    for other in (
        {"train__neftune_noise_alpha": "5"},
        {"train__gradient_checkpointing": "true"},
        {"lora__use_dora": "true", "merge__strategy": "original"},
    ):
        assert build(rows(*SIZES), **LANES, **other).trainer.collate.lanes == 1, other
    made = build(rows(*SIZES), **LANES)
    assert not probes.draws_in_training(made.trainer.network)
    made.trainer.network.get_input_embeddings().register_forward_hook(lambda _, __, out: torch.dropout(out, 0.1, True))
    assert probes.draws_in_training(made.trainer.network)


def test_the_loss_is_the_mean_over_the_supervised_tokens_of_the_window(build: Any) -> None:
    made = build(rows(*SIZES))
    network, nats, tokens = made.trainer.network, 0.0, 0
    network.set_attn_implementation("sdpa")
    with torch.no_grad():
        for row in made.trainer.train_dataset:
            labels = torch.tensor([row["labels"]])
            logits = network(torch.tensor([row["input_ids"]])).logits[:, :-1]
            nats += torch.nn.functional.cross_entropy(
                logits[0], labels[0, 1:], ignore_index=IGNORE, reduction="sum"
            ).item()
            tokens += int((labels[0, 1:] != IGNORE).sum())
    # float32's sum of as many terms as there are tokens, all of them positive, and a few roundings within each
    mean = torch.tensor(nats / tokens, dtype=torch.float64)
    rounding.assert_rounded(step(build(rows(*SIZES)))["loss"], mean, mean, 16)


def test_an_evaluation_leaves_gradients_and_random_numbers_as_they_were(build: Any) -> None:
    made = build(rows(*SIZES), rows(12, 20, 9), lora__lora_dropout="0.2")
    torch.manual_seed(7)
    before = step(made)
    state = torch.get_rng_state()
    made.trainer.evaluate()
    assert torch.equal(state, torch.get_rng_state())
    assert made.trainer.model.training
    torch.manual_seed(7)
    after = step(made)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name


def test_a_window_without_loss_is_fatal_and_named(build: Any) -> None:
    silent = rows(9, 12).map(lambda row: {"labels": [IGNORE] * len(row["labels"])})
    with pytest.raises(UserError, match=r"no token carries loss in rows rows\.jsonl:1, rows\.jsonl:2"):
        step(build(silent), 2)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step_and_names_the_rows(build: Any, what: str) -> None:
    made = build(rows(*SIZES), train__num_train_epochs="3", train__per_device_train_batch_size="4")
    trainer, before = made.trainer, None

    def poison(*_: Any) -> None:
        nonlocal before
        if trainer.state.global_step == 2 and before is None:
            before = {name: w.detach().clone() for name, w in trainer.model.named_parameters() if w.requires_grad}
            if what == "loss":
                trainer.network.get_output_embeddings().weight.data[0, 0] = float("nan")

    def poisoned(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if trainer.state.global_step == 2 and what == "gradient" else gradient

    trained = next(w for w in trainer.model.parameters() if w.requires_grad)
    trained.register_hook(poisoned)
    trainer.model.register_forward_pre_hook(poison)
    said = "the loss is nan" if what == "loss" else "the norm of the gradients is (inf|nan)"
    with pytest.raises(UserError, match=rf"{said} at step 3, in rows rows\.jsonl:\d"):
        trainer.train()
    assert before is not None
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            assert torch.equal(weight, before[name]) and weight.isfinite().all(), name


@pytest.mark.parametrize("lanes", [1, 2])
def test_out_of_memory_halves_the_passes_and_keeps_the_step(
    build: Any, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    made, small = move_b(build(rows(*SIZES), train__auto_batch="true")), loss.loss_sum
    made.trainer.collate = replace(made.trainer.collate, lanes=lanes)

    def scarce(network: Any, batch: Any, *rest: Any, **named: Any) -> Any:
        if batch["input_ids"].numel() > 64:  # a longest row
            raise torch.OutOfMemoryError("CUDA out of memory")
        return small(network, batch, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loss, "loss_sum", scarce)
        measured = step(made)
    assert made.trainer.rows_in_a_pass == lanes
    assert_is_the_step(measured, made)


def test_a_pass_that_failed_does_not_stay_in_memory(build: Any) -> None:
    """Between two siblings, whose outputs the adapters' fast pass keeps until both are fetched."""
    made = build(rows(*SIZES), train__auto_batch="true")
    made.trainer.collate = replace(made.trainer.collate, lanes=1)
    inputs: list[weakref.ref[torch.Tensor]] = []
    failed = []

    def called(_: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        assert not failed or all(one() is None for one in inputs[: failed[0]]), "the pass that failed is still there"
        inputs.append(weakref.ref(given[0]))

    def scarce(*_: Any) -> None:
        if not failed:
            failed.append(len(inputs))
            raise torch.OutOfMemoryError("CUDA out of memory")

    for layer in made.trainer.network.model.layers:
        layer.mlp.register_forward_pre_hook(called)
        layer.mlp.act_fn.register_forward_pre_hook(scarce)
    mean = step(made)["loss"]
    assert failed == [1] and len(inputs) == 3 and made.trainer.rows_in_a_pass == 4
    exact = row_by_row(build(rows(*SIZES)), exact=True)["loss"]
    rounding.assert_rounded(mean, exact, exact, 16)


def test_a_model_that_has_no_room_is_one_line(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(setup, "load_base", scarce)
    monkeypatch.setattr(paths, "HOME", paths.MODELS.parent)
    with pytest.raises(UserError, match="/tiny was loaded: --method qlora loads it in 4 bits; or stop other programs"):
        build(rows(*SIZES))


def test_out_of_memory_without_auto_batch_ends_with_numbers(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried …"
        )

    made = build(rows(*SIZES), train__per_device_train_batch_size="4", train__gradient_accumulation_steps="2")
    monkeypatch.setattr(loss, "loss_sum", scarce)
    settings = yaml_file.load(None, {"data.max_length": "64", "train.per_device_train_batch_size": "4", "train.gradient_accumulation_steps": "2"})  # fmt: skip
    with pytest.raises(UserError) as caught:
        setup.advise_on_memory(lambda: step(made), settings, made.trainer)
    said = str(caught.value)
    assert "--train.per_device_train_batch_size 2 --train.gradient_accumulation_steps 4" in said
    assert "--train.gradient_checkpointing true" in said


def test_out_of_memory_in_an_evaluation_names_its_own_setting(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = build(rows(*SIZES), rows(*SIZES))
    monkeypatch.setattr(loss, "loss_sum", scarce)
    settings = yaml_file.load(None, {"data.max_length": "64", "train.per_device_eval_batch_size": "4"})
    with pytest.raises(UserError, match="on the held-out rows, 4 × 64 tokens at a time: try --train"):
        setup.advise_on_memory(made.trainer.evaluate, settings, made.trainer)


def test_advice_keeps_the_effective_batch(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(rows(*SIZES), train__per_device_train_batch_size="5", train__gradient_accumulation_steps="1")
    made.trainer.model.train()
    settings = yaml_file.load(
        None, {"train.per_device_train_batch_size": "5", "train.gradient_accumulation_steps": "1"}
    )

    def scarce() -> None:
        raise MemoryError

    with pytest.raises(UserError, match=r"train_batch_size 1 --train\.gradient_accumulation_steps 5"):
        setup.advise_on_memory(scarce, settings, made.trainer)


def test_what_needs_rows_of_their_own_is_padded(build: Any) -> None:
    assert build(rows(*SIZES)).trainer.collate.packed
    noisy = build(rows(*SIZES), train__neftune_noise_alpha="5").trainer
    assert not noisy.collate.packed and not noisy.collate.share_prefix
    with pytest.raises(UserError, match="NEFTune"):
        build(rows(*SIZES), train__neftune_noise_alpha="5", train__padding_free="true")


def test_the_trainer_takes_its_windows_in_another_order_each_epoch(build: Any) -> None:
    made = build(rows(*[5 + number % 7 for number in range(20)]), train__num_train_epochs="3", train__per_device_train_batch_size="4")  # fmt: skip
    seen: list[list[str]] = []
    own = made.trainer.training_step

    def watched(model: Any, inputs: Any, *rest: Any) -> Any:
        seen.append([row["row"] for row in inputs])
        return own(model, inputs, *rest)

    made.trainer.training_step = watched
    made.trainer.train()
    assert [len(one) for one in seen] == [4] * 15
    epochs = [[name for one in seen[5 * number : 5 * number + 5] for name in one] for number in range(3)]
    assert all(sorted(epoch) == sorted(made.trainer.train_dataset["row"]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_options_of_the_data_loader_arrive_and_wrong_ones_are_one_line(build: Any) -> None:
    given = {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3}
    options = {"train__dataloader_num_workers": "1", "train__training_args": json.dumps(given)}
    loader = build(rows(*SIZES), **options).trainer.get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 3)
    options["train__training_args"] = json.dumps({"dataloader_multiprocessing_context": "thread"})
    with pytest.raises(UserError, match=r"asks of the data loader does not work: .*thread"):
        build(rows(*SIZES), **options).trainer.get_train_dataloader()


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.0055), ("cosine", 0.0055)])
def test_schedules_end_at_the_minimum_learning_rate(build: Any, schedule: str, middle: float) -> None:
    made = build(rows(*SIZES), train__lr_scheduler_type=schedule, train__min_learning_rate="1e-3", train__warmup_steps="0",
                 train__max_steps="20")  # fmt: skip
    trainer = made.trainer
    trainer.create_optimizer_and_scheduler(20)
    rates = []
    for _ in range(21):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[0] == pytest.approx(1e-2) and rates[-1] == pytest.approx(1e-3)
    assert rates[10] == pytest.approx(middle, rel=1e-6)


def test_loraplus_gives_b_a_higher_learning_rate(build: Any) -> None:
    made = build(rows(*SIZES), lora__loraplus_lr_ratio="16", train__weight_decay="0.1")
    optimizer = made.trainer.create_optimizer()
    rate = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    decay = {group["weight_decay"] for group in optimizer.param_groups if group["params"]}
    for name, weight in made.trainer.model.named_parameters():
        if weight.requires_grad:
            assert rate[id(weight)] == pytest.approx(0.16 if "lora_B" in name else 0.01)
    assert 0.1 in decay
