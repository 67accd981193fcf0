"""Every field of transformers' TrainingArguments is a setting, fixed with a reason, or free; and what is free arrives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from lockstep import paths
from lockstep.errors import UserError
from lockstep.settings import yaml_file
from lockstep.settings.schema import Train
from lockstep.settings.tree import Settings
from lockstep.training import arguments

FIELDS = sorted(TrainingArguments.__dataclass_fields__)
# A value for each free field that is neither the library's default nor ours.
FREE: dict[str, Any] = {
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_persistent_workers": True,
    "dataloader_prefetch_factor": 3,
    "ddp_broadcast_buffers": True,
    "ddp_bucket_cap_mb": 7,
    "ddp_find_unused_parameters": True,
    "ddp_static_graph": True,
    "ddp_timeout": 77,
    "debug": "underflow_overflow",
    "eval_delay": 3,
    "full_determinism": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "liger_kernel_config": {"rope": False},
    "log_level": "info",
    "log_level_replica": "info",
    "log_on_each_node": False,
    "logging_first_step": False,
    "logging_strategy": "epoch",
    "lr_scheduler_kwargs": {"power": 2.0},
    "optim_args": "eps=1e-7",
    "optim_target_modules": ["q_proj"],
    "project": "mine",
    "report_to": "none",
    "restore_callback_states_from_checkpoint": True,
    "run_name": "mine",
    "skip_memory_metrics": False,
    "tf32": False,
    "torch_compile": True,
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "trackio_bucket_id": "b",
    "trackio_space_id": "s",
    "trackio_static_space_id": "t",
}


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)


def settings_with(training_args: dict[str, Any], **train: Any) -> Settings:
    values = {"training_args": training_args, "dataloader_num_workers": 1} | train
    return yaml_file.load(None, {"run": "r"}).model_copy(update={"train": Train(**values)})


def built(settings: Settings) -> TrainingArguments:
    arguments.check(settings.train)
    return arguments.build(settings, "cpu", torch.float32, evaluate=True)


def plain(value: Any) -> Any:
    """An enum's value, or that of its members: what a user writes."""
    if isinstance(value, list):
        return [plain(part) for part in value]
    return getattr(value, "value", value)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_setting_or_fixed_or_arrives(name: str) -> None:
    kinds = [name in Train.model_fields, name in arguments.FIXED, name in FREE]
    assert kinds.count(True) == 1, f"{name}: decide what it is, in arguments.FIXED or here"
    if name in FREE:
        arguments_built = built(settings_with({name: FREE[name]}))
        arrived = plain(getattr(arguments_built, name))
        expected = {"debug": ["underflow_overflow"], "report_to": []}.get(name, FREE[name])
        assert arrived == expected
        return
    with pytest.raises(UserError, match=rf"^--train\.training_args: {name} ") as refusal:
        built(settings_with({name: None}))
    if name in Train.model_fields:
        assert str(refusal.value).endswith(f"use --train.{name}")
    else:
        assert str(refusal.value).endswith(f"the pipeline decides it: {arguments.FIXED[name]}")


def test_a_free_field_differs_from_what_holds_without_it() -> None:
    """Or the test above would see nothing arrive."""
    without = built(settings_with({}))
    for name, value in FREE.items():
        if name != "ddp_timeout":
            assert plain(getattr(without, name)) != value, name


def test_what_is_passed_on_is_what_the_lists_say() -> None:
    settings = settings_with({})
    fixed = arguments._fixed(settings, "cpu", torch.float32, True)
    assert fixed.keys() <= arguments.FIXED.keys() <= set(FIELDS)
    assert arguments.DEFAULTS.keys() <= FREE.keys()
    assert Train.model_fields.keys() & set(FIELDS) >= arguments.OWN_LOOP
    arguments_built = built(settings)
    for name in Train.model_fields.keys() & set(FIELDS) - arguments.OWN_LOOP - {"optim"}:
        assert plain(getattr(arguments_built, name)) == getattr(settings.train, name), name
    for name, value in fixed.items():
        assert plain(getattr(arguments_built, name)) == value, name


def test_trainer_sees_a_window_as_one_batch() -> None:
    settings = settings_with({}, per_device_train_batch_size=3, gradient_accumulation_steps=5)
    arguments_built = built(settings)
    assert arguments_built.per_device_train_batch_size == 15
    assert arguments_built.gradient_accumulation_steps == 1
    assert not arguments_built.load_best_model_at_end


def test_options_of_a_schedule_with_a_floor_can_be_given_and_win() -> None:
    settings = settings_with({"lr_scheduler_kwargs": {"power": 2.0}}, min_learning_rate=1e-6)
    assert built(settings).lr_scheduler_kwargs == {"power": 2.0, "lr_end": 1e-6}


def test_an_unknown_field_and_a_value_that_does_not_fit_are_named() -> None:
    with pytest.raises(UserError, match="adam_betaX is no field of transformers' Training"):
        built(settings_with({"adam_betaX": 1}))
    with pytest.raises(UserError, match="ddp_timeout must be a number of seconds, and is soon"):
        built(settings_with({"ddp_timeout": "soon"}))
    with pytest.raises(UserError, match=r"do not fit transformers' TrainingArguments: .*nonsense"):
        built(settings_with({"logging_strategy": "nonsense"}))
