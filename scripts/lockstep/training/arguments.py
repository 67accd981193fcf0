"""transformers' TrainingArguments: what the settings say, what the pipeline fixes, and what is left to the user.

Every field is exactly one of these:

    a setting       `train.` has it under the same name; --train.training_args refuses it and names the setting
    fixed           in FIXED, with the reason; --train.training_args refuses it and gives the reason
    free            --train.training_args sets it; where it does not, DEFAULTS or the library's own value holds
"""

import os
from collections.abc import Set
from typing import TYPE_CHECKING, Any

from lockstep.artifacts import filenames
from lockstep.errors import UserError
from lockstep.processes import distributed
from lockstep.settings.schema import Train
from lockstep.settings.tree import Settings

if TYPE_CHECKING:  # both take seconds to load, and `check` needs neither
    import torch
    from transformers import TrainingArguments

_EVALUATION = "evaluation sums the loss over supervised tokens, in the dtype of training, and computes nothing else"
_HUB = "a training uploads nothing"
_LAUNCHER = "the launcher decides it: see configs/accelerate/"
_ROWS = "a window is loaded as plain rows and laid out afterwards, in an order of --train.seed alone"
_EXAMPLES = "it is a flag of Hugging Face's example scripts, and Trainer does not read it"

# Fields that the pipeline decides, each with the reason that a user is told.
FIXED: dict[str, str] = {
    # where it computes, and in what
    "output_dir": "checkpoints go to outputs/<run>/checkpoints",
    "bf16": "--train.dtype sets the compute dtype",
    "fp16": "--train.dtype sets the compute dtype",
    "use_cpu": "the GPU is used where there is one",
    "local_rank": _LAUNCHER,
    "ddp_backend": "NCCL connects GPUs, and Gloo processes on CPUs",
    "fsdp": _LAUNCHER,
    "fsdp_config": _LAUNCHER,
    "deepspeed": _LAUNCHER,
    "parallelism_config": _LAUNCHER,
    # which rows meet in a step, and their loss
    "accelerator_config": "windows are shared out among processes by the pipeline, not by accelerate",
    "auto_find_batch_size": "--train.auto_batch does that and keeps the effective batch",
    "average_tokens_across_devices": "the loss is always the mean over the supervised tokens of all processes",
    "label_smoothing_factor": "the loss is the negative log-likelihood of the supervised tokens",
    "train_sampling_strategy": _ROWS,
    "length_column_name": _ROWS,
    "data_seed": _ROWS,
    "dataloader_drop_last": "every row is trained on",
    "dataloader_pin_memory": _ROWS,
    "dataloader_in_order": _ROWS,
    "remove_unused_columns": "rows keep their number, which errors name",
    "use_cache": "a training pass needs no cache",
    "torch_empty_cache_steps": "memory is given back where --train.auto_batch needs it",
    # evaluation
    "eval_strategy": "held-out rows are evaluated every --train.eval_steps, where there are any",
    "eval_on_start": "a resumed training would count one evaluation more than an uninterrupted one",
    "prediction_loss_only": _EVALUATION,
    "bf16_full_eval": _EVALUATION,
    "fp16_full_eval": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "label_names": _EVALUATION,
    "metric_for_best_model": "the best weights are those of the lowest held-out loss",
    "greater_is_better": "the best weights are those of the lowest held-out loss",
    # checkpoints and resuming
    "save_strategy": "a checkpoint is written every --train.save_steps",
    "save_only_model": "a checkpoint holds all that resuming needs",
    "save_on_each_node": "the first process writes checkpoints",
    "enable_jit_checkpoint": "SIGTERM is answered with a checkpoint already",
    "resume_from_checkpoint": "the same command resumes from the last checkpoint by itself",
    "ignore_data_skip": "a resumed training sees the rows that the uninterrupted one would have seen",
    # reports
    "logging_nan_inf_filter": "a loss that is not finite ends the training",
    "disable_tqdm": "the pipeline draws its own progress bar",
    "include_num_input_tokens_seen": "metrics.jsonl has the speed in tokens per second",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "do_train": _EXAMPLES,
    "do_eval": _EXAMPLES,
    "do_predict": _EXAMPLES,
}

# Fields that are free, where the pipeline's default is another than the library's.
DEFAULTS: dict[str, Any] = {
    "gradient_checkpointing_kwargs": {"use_reentrant": False},  # the kind that torch recommends
    "logging_first_step": True,  # the loss before anything was learned
    "ddp_find_unused_parameters": False,  # every trained weight takes part in every pass
    "log_level": "error",
}

# Settings that go by names of TrainingArguments, and are carried out by the pipeline's own loop.
OWN_LOOP = {
    "per_device_train_batch_size",  # Trainer is told the window instead: see trainer.py
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "load_best_model_at_end",  # Trainer would load a checkpoint without verifying it
}


def check(train: Train) -> None:
    """Refuse what does not belong in --train.training_args. Whether the library knows a field is seen in `build`.

    Raises:
        UserError: a field is a setting of its own, or fixed.
    """
    for name in train.training_args:
        if name in Train.model_fields:
            raise UserError(f"--train.training_args: {name} is a setting of its own: use --train.{name}")
        if name in FIXED:
            raise UserError(f"--train.training_args: {name} cannot be set, the pipeline decides it: {FIXED[name]}")
    timeout = train.training_args.get("ddp_timeout")  # used before the library sees it: see `distributed.join`
    if timeout is not None and (not isinstance(timeout, int | float) or timeout <= 0):
        raise UserError(f"--train.training_args: ddp_timeout must be a number of seconds, and is {timeout}")


def build(settings: Settings, on: str, dtype: "torch.dtype", evaluate: bool) -> "TrainingArguments":
    """The arguments of a training.

    Args:
        on: cpu, cuda or mps.
        dtype: that training computes in.
        evaluate: whether there are held-out rows.

    Raises:
        UserError: a field is unknown, or a value does not fit.
    """
    from transformers import TrainingArguments

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(settings.run_dir / filenames.TENSORBOARD)
    chosen = DEFAULTS | {"report_to": "tensorboard" if distributed.FIRST else "none"} | settings.train.training_args
    known = TrainingArguments.__dataclass_fields__.keys()
    if unknown := sorted(chosen.keys() - known):
        raise UserError(f"--train.training_args: {unknown[0]} is no field of transformers' TrainingArguments")
    values = _from_settings(settings.train, on, known) | _fixed(settings, on, dtype, evaluate)
    schedule = values.pop("lr_scheduler_kwargs", {})
    if schedule:  # of the minimum learning rate; more of the schedule's options may be given
        chosen["lr_scheduler_kwargs"] = schedule | (chosen.get("lr_scheduler_kwargs") or {})
    try:
        arguments = TrainingArguments(**values, **chosen)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"the train settings do not fit transformers' TrainingArguments: {error}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one GPU: never nn.DataParallel
    return arguments


def _from_settings(train: Train, on: str, known: Set[str]) -> dict[str, Any]:
    """The settings that are fields of TrainingArguments, in its terms."""
    values = {name: value for name, value in train.model_dump().items() if name in known and name not in OWN_LOOP}
    # Trainer sees a window as one batch of one step
    values["per_device_train_batch_size"] = train.per_device_train_batch_size * train.gradient_accumulation_steps
    if values["optim"] == "auto":
        values["optim"] = "paged_adamw_8bit" if on == "cuda" else "adamw_torch"
    if floor := train.min_learning_rate:
        if train.lr_scheduler_type == "linear":  # a polynomial of power 1 is a line, and it has an end
            values |= {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 1.0, "lr_end": floor}}
        else:
            values |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": floor}}
    return values


def _fixed(settings: Settings, on: str, dtype: "torch.dtype", evaluate: bool) -> dict[str, Any]:
    """Values of fixed fields that are not the library's own."""
    import torch

    return {
        "output_dir": str(settings.run_dir / filenames.CHECKPOINTS),
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": on == "cpu",
        "eval_strategy": "steps" if evaluate else "no",
        "save_strategy": "steps",
        "metric_for_best_model": "eval_loss" if evaluate else None,
        "greater_is_better": False,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "disable_tqdm": True,
    }
