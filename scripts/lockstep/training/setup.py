"""A training from settings: its rows, the model, how rows are laid out, resuming, ending."""

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerState, set_seed

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.data.collator import PackingCollator
from lockstep.errors import Terminated, UserError, is_out_of_memory
from lockstep.model import (
    checkpoint_names,
    coverage,
    experts_adapter,
    lora_targets,
    networks,
    peft_adapter,
    vllm_support,
    weight_account,
)
from lockstep.processes import busy, distributed
from lockstep.settings.tree import Settings
from lockstep.training import (
    arguments,
    checkpoints,
    dry_run,
    early_stopping,
    fast_lora,
    packed_attention,
    probes,
    progress,
    row_isolation,
)
from lockstep.training.batching import WindowCollator
from lockstep.training.parallel_passes import lanes_for
from lockstep.training.trainer import SupervisedTrainer, naming, perplexity

Say = Callable[[str], object]


@dataclass(frozen=True)
class Rows:
    """The data sets of a training, each with the columns `input_ids`, `labels` and `row`.

    Attributes:
        held_out: None where there are no held-out rows.
    """

    train: Any
    held_out: Any | None


def read_rows(settings: Settings) -> Rows:
    """What stage 01 wrote. Raises UserError where a setting needs held-out rows and there are none."""
    from datasets import load_from_disk

    splits = [
        load_from_disk(settings.run_dir / filenames.DATA / split).select_columns(["input_ids", "labels", "row"])
        for split in ("train", "validation")
    ]
    rows = Rows(splits[0], splits[1] if len(splits[1]) else None)
    train = settings.train
    if rows.held_out is None and (train.early_stopping_patience or train.load_best_model_at_end):
        raise UserError(
            "--train.early_stopping_patience and load_best_model_at_end go by held-out rows, and there are none: "
            "set --data.validation_share or --data.validation_file"
        )
    return rows


def compute_dtype(settings: Settings, on: str) -> torch.dtype:
    """The dtype that training computes in. Raises UserError where the device cannot."""
    if settings.method == "full" and settings.train.dtype == "float16" and on == "cpu":
        # it would compute in float32, and say otherwise
        raise UserError("--train.dtype float16 needs a GPU with --method full: take bfloat16 or float32")
    return networks.compute_dtype(settings.train.dtype, on)


def load_base(settings: Settings, dtype: torch.dtype, on: str, folder: Path | None = None) -> Any:
    """The base as training computes with it: 4-bit, plain, or float32 masters of all weights.

    Args:
        folder: where the weights are, if not in the base's own folder.
    """
    quantization = settings.quantization if settings.method == "qlora" else None
    device = "cpu" if distributed.MAY_BE_SHARDED else f"cuda:{distributed.LOCAL_RANK}" if on == "cuda" else on
    weights = torch.float32 if settings.method == "full" else dtype
    return networks.load(folder or settings.model.folder, weights, device, quantization)


def load_model(settings: Settings, on: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(what is trained, the network inside it): base and adapter, or the base itself.

    Raises:
        UserError: memory runs out while the base is loaded.
    """
    if settings.method != "full":
        empty = networks.empty(settings.model.folder)
        lora_targets.modules_of(empty, settings.lora.target_modules)
        experts_adapter.check(empty, settings.lora)
    if settings.method == "qlora":  # before memory runs out over what would not be in 4 bits
        account = weight_account.planned(settings.model.folder, settings.method, None, settings.quantization)
        coverage.check_share(account, settings.quantization.min_share_4bit)
    try:
        network = load_base(settings, dtype, on)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = "" if settings.method == "qlora" else "--method qlora loads it in 4 bits; or "
        raise UserError(
            f"out of memory while {paths.label(settings.model.folder)} was loaded: "
            f"{smaller}stop other programs, or choose a smaller model"
        ) from error
    set_seed(settings.train.seed)  # of the adapter's first weights, whatever was drawn while loading
    if settings.method == "full":
        text = networks.text_parameters(network)
        for name, weight in network.named_parameters():
            weight.requires_grad_(name in text)
        return network, network
    model = peft_adapter.attach(network, settings.lora)
    if settings.lora.start_from:
        peft_adapter.start_from(model, paths.data_file(settings.lora.start_from))
    if settings.lora.init_lora_weights.startswith(vllm_support.CONVERTED) and distributed.FIRST:
        peft_adapter.keep_initial(model, settings.run_dir / filenames.CHECKPOINTS / peft_adapter.INITIAL)
    return model, network


def lay_out(settings: Settings, network: Any, on: str, pad: int) -> WindowCollator:
    """How the rows of a pass are laid out: end to end where this model computes the same then, else padded.

    Raises:
        UserError: an attention implementation that this model or machine lacks; rows end to end where they would see
            each other.
    """
    train = settings.train
    automatic = train.attn_implementation == "auto"
    attention = packed_attention.plain(network) if automatic else train.attn_implementation
    if attention == "sdpa" != packed_attention.plain(network):
        raise UserError(
            f"--train.attn_implementation sdpa: {type(network).__name__} has no such attention: take eager, or leave "
            f"it out"
        )
    packing = None
    try:
        # NEFTune's noise is scaled by the length of what is embedded at once: a row's own, where it lies by itself
        if train.padding_free is not False and not train.neftune_noise_alpha:
            packed_attention.register()
            network.set_attn_implementation(packed_attention.NAME if automatic else attention)
            # only our own attention on CPUs knows shared beginnings
            ways = (PackingCollator(share_prefix=automatic and on == "cpu"), PackingCollator(sequence_ids=True))
            longest = settings.data.max_length
            packing = next((way for way in ways if row_isolation.rows_stay_apart(network, longest, way)), None)
        if not packing:
            network.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--train.attn_implementation {attention}: {reason}") from error
    if train.padding_free and train.neftune_noise_alpha:
        raise UserError("--train.padding_free: NEFTune's noise depends on a row's own length; leave one of them out")
    if train.padding_free and not packing:
        raise UserError("--train.padding_free: rows of this model would see each other; leave it out")
    return WindowCollator(
        pad,
        train.per_device_train_batch_size,
        settings.data.max_length,
        packed=packing is not None,
        share_prefix=packing is not None and packing.share_prefix,
        sequence_ids=packing is not None and packing.sequence_ids,
        rank=distributed.RANK,
        processes=distributed.PROCESSES,
    )


@dataclass(frozen=True)
class Training:
    """A training that is ready to start.

    Attributes:
        fast: the adapters' fast pass, where there is one.
        trainable: how many parameters are trained.
        account: what of the base is quantized, adapted, and neither.
        findings: of the dry run; None where no process holds all weights.
    """

    trainer: SupervisedTrainer
    fast: fast_lora.FastPass | None
    trainable: int
    account: coverage.Account
    findings: dry_run.Findings | None


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
    """Build the model, the layout of rows and the trainer that the settings ask for.

    Args:
        train: a data set with `input_ids`, `labels` and `row`; `held_out` likewise, or None.
        pad: the id that padded rows are padded with.
        checkpoint: what the training will go on from; adapters are computed by the same pass as before it.

    Raises:
        UserError: a setting that transformers, PEFT or an optimizer's library cannot do.
    """
    trainer_arguments = arguments.build(settings, on, dtype, evaluate=held_out is not None)
    into = " in 4 bits" if settings.method == "qlora" else ""
    with busy.waiting(f"loading {paths.label(settings.model.folder)}{into}"):
        model, network = load_model(settings, on, dtype)
    names = checkpoint_names.of_folder(settings.model.folder)
    account = weight_account.of_network(network, names)
    was_fast = checkpoints.note_of(checkpoint)["fast"] if checkpoint else None
    fast = fast_lora.FastPass(model, was_fast) if on != "mps" and not distributed.MAY_BE_SHARDED else None
    if settings.method != "full":
        dry_run.check_plan(settings, model, names)
    with (
        busy.waiting("dry run: trying what would fail later"),
        torch.autocast(on, dtype, enabled=dtype != torch.float32),
    ):
        findings = None
        if not distributed.MAY_BE_SHARDED:
            fast, findings = dry_run.check_passes(settings, model, network, fast, train)
        collate = lay_out(settings, network, on, pad)
        # FSDP and ZeRO hold parts of weights; what computes with whole ones is left to their own layers
        in_pieces = not distributed.MAY_BE_SHARDED and probes.head_is_plain(network)
        collate = replace(collate, lanes=lanes_for(settings.train, network, fast, collate))
    with naming("what --train.training_args asks for"):
        trainer = SupervisedTrainer(
            train=settings.train,
            lora=settings.lora,
            collate=collate,
            in_pieces=in_pieces,
            network=network,
            fast=fast,
            model=model,
            args=trainer_arguments,
            train_dataset=train,
            eval_dataset=held_out,
            callbacks=list(callbacks),
        )
    trainer.remove_callback(PrinterCallback)  # it would print every log line again
    if findings and findings.left_out:
        account = weight_account.of_network(network, names)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return Training(trainer, fast, trainable, account, findings)


def resume(trainer: SupervisedTrainer, checkpoint: Path, run_dir: Path, say: Say) -> Path | None:
    """Prepare a trainer to go on from a checkpoint, and remove what was logged after it.

    Returns:
        what train() must resume from. None where the training had come to its end: then the checkpoint's weights are
        in place already, as Trainer itself would train one step more.
    """
    say(f"resuming from {paths.label(checkpoint)}")
    state = TrainerState.load_from_json(str(checkpoint / filenames.TRAINER_STATE))
    if distributed.FIRST:
        progress.forget_after(run_dir, state.global_step)
        trainer.seconds_before, tokens = progress.spent(run_dir, state.global_step)
        trainer.tokens = tokens // distributed.PROCESSES
    note = checkpoints.note_of(checkpoint)
    trainer.recall(note)
    before, now = note.get("threads"), torch.get_num_threads()
    if before not in (None, now) and networks.device() == "cpu":  # each thread adds up a part of every sum
        say(
            f"note: {before} threads computed so far, and {now} go on: sums are rounded otherwise, and the weights "
            f"will not be bit for bit those of an uninterrupted training"
        )
    train = trainer.settings
    stuck = early_stopping.is_stuck(state.log_history, train.early_stopping_patience, train.early_stopping_threshold)
    if state.global_step < state.max_steps and not stuck:
        return checkpoint
    trainer.load_weights(checkpoint)
    trainer.state = state
    return None


def finish(trainer: SupervisedTrainer, settings: Settings, terminated: bool, say: Say) -> dict[str, float]:
    """Put the weights that are published in place, and return their held-out loss, if there are held-out rows.

    Raises:
        Terminated: SIGTERM ended the training; the step is saved.
        UserError: training did not come to its end.
    """
    state, train = trainer.state, settings.train
    if terminated:
        raise Terminated(f"terminated after step {state.global_step} of {state.max_steps}")
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
            f"the held-out loss got no better in {train.early_stopping_patience} evaluations: "
            f"stopped at step {state.global_step}"
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
    """Run `work`; where memory runs out, say which settings to change, and to which values.

    Raises:
        UserError: memory ran out.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows, train = trainer.rows_in_a_pass, settings.train
        if not trainer.model.training and train.per_device_eval_batch_size > 1:
            raise UserError(
                f"out of memory on the held-out rows, {train.per_device_eval_batch_size} × {settings.data.max_length} "
                f"tokens at a time: try --train.per_device_eval_batch_size {train.per_device_eval_batch_size // 2}"
            ) from error
        window = train.per_device_train_batch_size * train.gradient_accumulation_steps
        by_itself = "" if train.auto_batch else " (or --train.auto_batch true, which does that by itself)"
        sizes = [size for size in range(1, rows // 2 + 1) if window % size == 0]  # those that divide the window
        if sizes:
            advice = (
                f"--train.per_device_train_batch_size {sizes[-1]} "
                f"--train.gradient_accumulation_steps {window // sizes[-1]}{by_itself}"
            )
        else:
            advice = f"--data.max_length {settings.data.max_length // 2}"
        checkpointing = "" if train.gradient_checkpointing else ", or --train.gradient_checkpointing true"
        raise UserError(
            f"out of memory with passes of {rows} × {settings.data.max_length} tokens: try {advice}{checkpointing}"
        ) from error
