"""A training from settings: transformers' arguments, the model, how rows are laid out, resuming, ending."""

import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments, set_seed

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.errors import Terminated, UserError, is_out_of_memory
from lockstep.model import networks, peft_adapter, vllm_support
from lockstep.processes import distributed
from lockstep.settings.tree import Settings
from lockstep.training import checkpoints, early_stopping, fast_lora, loss, packed_attention, progress
from lockstep.training.batching import WindowCollator
from lockstep.training.parallel_passes import lanes_for
from lockstep.training.trainer import SupervisedTrainer, asked_by, perplexity

Say = Callable[[str], object]
# Settings of ours that are no field of TrainingArguments, or that our own loop takes care of.
OURS = {
    "dtype", "padding_free", "auto_batch", "min_learning_rate", "early_stopping_patience", "early_stopping_threshold",
    "load_best_model_at_end", "attn_implementation", "sample_rows", "sample_tokens", "training_args",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit",
}  # fmt: skip


def arguments(settings: Settings, on: str, dtype: torch.dtype, evaluate: bool) -> Any:
    """transformers' TrainingArguments from the train section, which uses its names."""
    train = settings.train.model_dump(exclude=OURS)
    if train["optim"] == "auto":
        train["optim"] = "paged_adamw_8bit" if on == "cuda" else "adamw_torch"
    if floor := settings.train.min_learning_rate:
        if train["lr_scheduler_type"] == "linear":  # a polynomial of power 1 is a line, and it has an end
            train |= {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 1.0, "lr_end": floor}}
        else:
            train |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": floor}}
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(settings.run_dir / filenames.TENSORBOARD)
    window = settings.train.per_device_train_batch_size * settings.train.gradient_accumulation_steps
    given = {
        "report_to": "tensorboard" if distributed.FIRST else "none",
        "log_level": "error",
    } | settings.train.training_args
    try:
        made = TrainingArguments(
            output_dir=str(settings.run_dir / filenames.CHECKPOINTS),
            **train,
            per_device_train_batch_size=window,  # Trainer sees a window as one batch: see lockstep/training/trainer.py
            save_total_limit=settings.train.save_total_limit,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            use_cpu=on == "cpu",
            gradient_checkpointing_kwargs={"use_reentrant": False},
            eval_strategy="steps" if evaluate else "no",
            save_strategy="steps",
            metric_for_best_model="eval_loss" if evaluate else None,
            greater_is_better=False,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            prediction_loss_only=True,
            disable_tqdm=True,  # ours shows tokens/s
            ddp_find_unused_parameters=False,
            **given,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"the train settings do not fit transformers' TrainingArguments: {error}") from error
    made._n_gpu = min(made.n_gpu, 1)  # one process, one GPU: never nn.DataParallel
    return made


def load_base(settings: Settings, dtype: torch.dtype, on: str, folder: Path | None = None) -> Any:
    """The base as training computes with it: 4-bit, plain, or float32 masters of all weights.

    Args:
        folder: where the weights are, if not in the base's own folder.
    """
    quantization = settings.quantization if settings.method == "qlora" else None
    device = "cpu" if distributed.SHARDED else f"cuda:{distributed.LOCAL_RANK}" if on == "cuda" else on
    weights = torch.float32 if settings.method == "full" else dtype
    return networks.load(folder or settings.model.folder, weights, device, quantization)


def load_model(settings: Settings, on: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(what is trained, the network inside it): base and adapter, or the base itself. Raises UserError where it has no room."""
    try:
        network = load_base(settings, dtype, on)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = "" if settings.method == "qlora" else "--method qlora loads it in 4 bits; or "
        raise UserError(
            f"out of memory while {paths.label(settings.model.folder)} was loaded: {smaller}stop other programs, or choose a smaller model"
        ) from error
    set_seed(settings.train.seed)  # of the adapter's first weights, whatever was drawn while loading
    if settings.method == "full":
        network.requires_grad_(True)
        return network, network
    model = peft_adapter.attach(network, settings.lora)
    if settings.lora.start_from:
        peft_adapter.start_from(model, paths.data_file(settings.lora.start_from))
    if settings.lora.init_lora_weights.startswith(vllm_support.CONVERTED) and distributed.FIRST:
        peft_adapter.keep_initial(model, settings.run_dir / filenames.CHECKPOINTS / peft_adapter.INITIAL)
    return model, network


def lay_out(settings: Settings, network: Any, on: str, pad: int) -> WindowCollator:
    """How the rows of a pass are laid out: end to end where this model computes the same then, else padded."""
    train, packed = settings.train, False
    # NEFTune's noise is scaled by the length of what is embedded at once: a row's own, where it lies by itself
    wanted = train.padding_free is not False and not train.neftune_noise_alpha
    given = network.config._attn_implementation if train.attn_implementation == "auto" else train.attn_implementation
    try:
        if wanted:
            packed_attention.register()
            network.set_attn_implementation(packed_attention.NAME if train.attn_implementation == "auto" else given)
            packed = loss.rows_stay_apart(network, settings.data.max_length)
        if not packed:
            network.set_attn_implementation(given)
    except (ValueError, ImportError) as error:
        raise UserError(f"--train.attn_implementation {given}: {error}") from error
    if train.padding_free and train.neftune_noise_alpha:
        raise UserError("--train.padding_free: NEFTune's noise depends on a row's own length; leave one of them out")
    if train.padding_free and not packed:
        raise UserError("--train.padding_free: rows of this model would see each other; leave it out")
    own = packed and train.attn_implementation == "auto"
    return WindowCollator(
        pad, train.per_device_train_batch_size, settings.data.max_length, packed,
        share_prefix=own and on == "cpu", rank=distributed.RANK, processes=distributed.PROCESSES,
    )  # fmt: skip


@dataclass(frozen=True)
class Training:
    """A training that is ready to start.

    Attributes:
        fast: the adapters' fast pass, where there is one.
        trainable: how many parameters are trained.
    """

    trainer: SupervisedTrainer
    fast: fast_lora.FastPass | None
    trainable: int


def build(
    settings: Settings,
    on: str,
    dtype: torch.dtype,
    train: Any,
    held_out: Any,
    pad: int,
    callbacks: Sequence[TrainerCallback],
    checkpoint: Path | None = None,
) -> Training:
    """Model, layout of rows and trainer, by the settings.

    Args:
        train: a data set with `input_ids`, `labels` and `row`; `held_out` likewise, or None.
        pad: the id that padded rows are padded with.
        checkpoint: from which the training will go on: adapters are computed as they were before it.

    Raises:
        UserError: a setting that transformers, PEFT or an optimizer's library cannot do.
    """
    made = arguments(settings, on, dtype, evaluate=held_out is not None)
    model, network = load_model(settings, on, dtype)
    before = checkpoints.note_of(checkpoint)["fast"] if checkpoint else None
    fast = fast_lora.FastPass(model, before) if on != "mps" and not distributed.SHARDED else None
    with torch.autocast(on, dtype, enabled=dtype != torch.float32):
        collate = lay_out(settings, network, on, pad)
        # FSDP and ZeRO hold parts of weights; what computes with whole ones is left to their own layers
        in_pieces = not distributed.SHARDED and loss.head_is_plain(network)
        collate = replace(collate, lanes=lanes_for(settings.train, network, fast, collate))
    with asked_by("what --train.training_args asks for"):
        trainer = SupervisedTrainer(
            train=settings.train, lora=settings.lora, collate=collate, in_pieces=in_pieces, network=network,
            fast=fast, model=model, args=made, train_dataset=train, eval_dataset=held_out, callbacks=list(callbacks),
        )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it would print every log line again
    return Training(trainer, fast, sum(weight.numel() for weight in model.parameters() if weight.requires_grad))


def resume(trainer: SupervisedTrainer, checkpoint: Path, run_dir: Path, say: Say) -> Path | None:
    """What train() must resume from. Where the checkpoint is the end, its weights are put in place: None.

    Trainer itself would train one step more. Records after the checkpoint go.
    """
    say(f"resuming from {paths.label(checkpoint)}")
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if distributed.FIRST:
        progress.forget_after(run_dir, state.global_step)
    trainer.recall(checkpoints.note_of(checkpoint))
    train = trainer.settings
    stuck = early_stopping.is_stuck(state.log_history, train.early_stopping_patience, train.early_stopping_threshold)
    if state.global_step < state.max_steps and not stuck:
        return checkpoint
    trainer.load_weights(checkpoint)
    trainer.state = state
    return None


def finish(trainer: SupervisedTrainer, settings: Settings, terminated: bool, say: Say) -> dict[str, float]:
    """The weights that are published, and their held-out loss; nothing where training did not come to its end."""
    state, train = trainer.state, settings.train
    if terminated:
        raise Terminated(
            f"terminated after step {state.global_step} of {state.max_steps}; run the same command again to go on"
        )
    stuck = early_stopping.is_stuck(state.log_history, train.early_stopping_patience, train.early_stopping_threshold)
    if state.global_step != state.max_steps and not stuck:
        raise UserError(
            f"training stopped at step {state.global_step} of {state.max_steps}: run the same command again"
        )
    if distributed.FIRST:  # once more: a kill may have come before
        checkpoints.prune(settings.run_dir / filenames.CHECKPOINTS, train.save_total_limit, state.best_global_step)
    evaluated = dict(early_stopping.losses(state.log_history))
    best = early_stopping.best_step(state.log_history) if train.load_best_model_at_end else None
    if stuck:
        say(
            f"the held-out loss got no better in {train.early_stopping_patience} evaluations: stopped at step {state.global_step}"
        )
    if best is not None and best != state.global_step:
        say(f"step {best} had the lowest held-out loss: its weights are published")
        trainer.load_weights(settings.run_dir / filenames.CHECKPOINTS / f"checkpoint-{best}")
    if trainer.eval_dataset is None:
        return {}
    value = evaluated.get(best if best is not None else state.global_step)
    if value is None:
        advise_on_memory(trainer.evaluate, settings, trainer)
        value = dict(early_stopping.losses(state.log_history))[state.global_step]
    return {"eval_loss": value, "eval_perplexity": perplexity(value)}


def peak_memory(on: str) -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if on == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def advise_on_memory(work: Callable[[], Any], settings: Settings, trainer: SupervisedTrainer) -> Any:
    """Run `work`; where memory runs out, say which settings to change, in numbers."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows, train = trainer.rows_in_a_pass, settings.train
        if not trainer.model.training and train.per_device_eval_batch_size > 1:
            raise UserError(
                f"out of memory on the held-out rows, {train.per_device_eval_batch_size} × {settings.data.max_length} tokens "
                f"at a time: try --train.per_device_eval_batch_size {train.per_device_eval_batch_size // 2}"
            ) from error
        window = train.per_device_train_batch_size * train.gradient_accumulation_steps
        by_itself = "" if train.auto_batch else " (or --train.auto_batch true, which does that by itself)"
        sizes = [size for size in range(1, rows // 2 + 1) if window % size == 0]  # by which the window stays whole
        fewer = max(sizes, default=0)
        advice = (
            f"--train.per_device_train_batch_size {fewer} --train.gradient_accumulation_steps {window // fewer}{by_itself}"
            if fewer
            else f"--data.max_length {settings.data.max_length // 2}"
        )
        checkpointing = "" if train.gradient_checkpointing else ", or --train.gradient_checkpointing true"
        raise UserError(f"out of memory with passes of {rows} × {settings.data.max_length} tokens: try {advice}{checkpointing}") from error  # fmt: skip
