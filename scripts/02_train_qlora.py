"""Stage 02: train an adapter on a 4-bit base (QLoRA), on a plain one (--method lora), or all weights (full).

Reads   models/<name>/ and outputs/<run>/data/
Writes  outputs/<run>/adapter/ : adapter_model.safetensors, adapter_config.json (full: model.safetensors,
        config.json), tokenizer, chat template, contract.json, reference.json (the trained model's own
        log-probabilities), base_tensors.json (hashes of the weights it was trained on), metrics.json,
        loss.png, README.md (model card), manifest.json
        While it runs: outputs/<run>/checkpoints/, metrics.jsonl, samples.jsonl, runs/ (TensorBoard)
Run     make train
        python scripts/02_train_qlora.py --config configs/demo.yaml --train.learning_rate 1e-4
        accelerate launch --config_file configs/accelerate/ddp.yaml scripts/02_train_qlora.py --config …

An interrupted training goes on from its last checkpoint when the same command runs again.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.artifacts.stage import Stage
from lockstep.data import user_files
from lockstep.errors import UserError, disk_errors
from lockstep.model import vllm_support
from lockstep.processes import distributed
from lockstep.settings import cli
from lockstep.settings.tree import Settings
from lockstep.training import checkpoints

if TYPE_CHECKING:
    import torch

    from lockstep.prompts.template import Template
    from lockstep.training.trainer import SupervisedTrainer

# Fields of TrainingArguments that the pipeline itself decides.
OWN = (
    "output_dir", "bf16", "fp16", "use_cpu", "eval_strategy", "save_strategy", "logging_nan_inf_filter", "save_only_model",
    "remove_unused_columns", "prediction_loss_only", "disable_tqdm", "metric_for_best_model", "greater_is_better",
    "auto_find_batch_size", "train_sampling_strategy", "push_to_hub", "hub_token", "resume_from_checkpoint",
    "ignore_data_skip", "data_seed", "dataloader_drop_last", "fsdp", "fsdp_config", "deepspeed", "average_tokens_across_devices", "label_smoothing_factor",
)  # fmt: skip


def check(settings: Settings) -> None:
    """Refuse, before anything is loaded, what could not be trained or served as the settings say."""
    explicit = settings.explicit
    distributed.check()
    if settings.method != "qlora" and any(key.startswith("quantization.") for key in explicit):
        raise UserError(f"--method {settings.method} quantizes nothing: drop the quantization settings, or choose --method qlora")  # fmt: skip
    vllm_support.check(settings)
    train = settings.train
    for key in train.training_args:
        if key in OWN or key in type(train).model_fields:
            setting = f"--train.{key}" if key in type(train).model_fields else "the pipeline decides it"
            raise UserError(f"--train.training_args: {key} does not go there: {setting}")
    if train.auto_batch and distributed.PROCESSES > 1:
        raise UserError("--train.auto_batch is for one process: several would have to run out of memory at once")
    if train.use_liger_kernel and find_spec("liger_kernel") is None:
        raise UserError(
            "--train.use_liger_kernel needs the package liger-kernel, on an NVIDIA GPU: pip install liger-kernel"
        )
    if settings.lora.start_from:
        vllm_support.check_start(settings)


def save(
    trainer: "SupervisedTrainer", chat: "Template", settings: Settings, metrics: dict[str, Any], work: Path
) -> None:
    """Everything that later stages and other people need of what was trained."""
    from lockstep.model import peft_adapter
    from lockstep.training import loss_plot, model_card

    run_dir = settings.run_dir
    state = trainer.gathered_state()
    if not distributed.FIRST:
        return
    hashes: dict[str, str] = {}
    if settings.method == "full":
        trainer.network.save_pretrained(work, state_dict=state)
    else:
        initial = run_dir / filenames.CHECKPOINTS / peft_adapter.INITIAL
        peft_adapter.save(trainer.model, settings.model.origin, initial if initial.exists() else None, state, work)
        hashes = peft_adapter.base_hashes(trainer.model)
    chat.tokenizer.save_pretrained(work)
    atomic.write_json(work / filenames.BASE_TENSORS, {"dequantized": hashes, "dtype": metrics["dtype"]})
    atomic.write_json(work / filenames.METRICS, metrics)
    # for servers that load the untouched base: where the answers that were learned end
    atomic.write_json(work / filenames.GENERATION_CONFIG, {"eos_token_id": chat.stop_ids})
    ledger = atomic.read_json(run_dir / filenames.DATA / filenames.LEDGER)
    (work / filenames.MODEL_CARD).write_text(
        model_card.write(settings, metrics, ledger, chat.stop_ids), encoding="utf-8"
    )
    loss_plot.draw(run_dir / filenames.TRAINING_LOG, work / filenames.LOSS_PLOT, settings.run)
    shutil.copyfile(run_dir / filenames.DATA / filenames.CONTRACT, work / filenames.CONTRACT)


def remember(trainer: "SupervisedTrainer", settings: Settings, dtype: "torch.dtype", work: Path) -> None:
    """reference.json: what the trained model, and its base, say to the golden conversations and to held-out rows."""
    from peft import PeftModel

    from lockstep.model import networks
    from lockstep.training import reference, setup

    data, model = settings.run_dir / filenames.DATA, trainer.model
    if distributed.SHARDED:  # no process holds all weights: what was saved is read back
        model = setup.load_base(settings, dtype, networks.device(), work if settings.method == "full" else None)
        model = model if settings.method == "full" else PeftModel.from_pretrained(model, work)
    else:
        trainer.network.set_attn_implementation("sdpa")
    record = reference.record(
        model,
        atomic.read_json(data / filenames.CONTRACT)["conversations"],
        reference.probe_rows(data),
        dtype,
        without_adapter=None if settings.method == "full" else model.disable_adapter(),
        longest=networks.longest(trainer.network.config),
    )
    atomic.write_json(work / filenames.REFERENCE, record)


def main() -> None:
    parser = cli.parser(__doc__ or "", "model", "method", "lora", "quantization", "train")
    cli.stage_options(parser)
    options = parser.parse_args()
    settings = cli.settings_from(options)
    run_dir = settings.run_dir
    check(settings)
    if options.check:
        sys.exit(user_files.check_exit_code(settings, "train", run_dir / filenames.ADAPTER))

    # --- inputs ---
    data = manifest.require(run_dir / filenames.DATA, "data")
    settings = settings.inherit(data.config, paths.label(run_dir / filenames.DATA))
    manifest.require(settings.model.folder, "download")
    sections = settings.sections("model", "data", "method", "lora", "quantization", "train")
    inputs = [settings.model.folder, run_dir / filenames.DATA]
    if settings.lora.start_from:
        inputs.append(paths.data_file(settings.lora.start_from) / filenames.ADAPTER_WEIGHTS)
    say: Callable[..., None] = print if distributed.FIRST else lambda *_: None
    stage = Stage("train", run_dir / filenames.ADAPTER, sections, inputs, options.force)
    task = {"config": stage.config | {"processes": distributed.PROCESSES}, "inputs": stage.inputs}
    if found := stage.finished():
        if distributed.FIRST:
            checkpoints.close(run_dir / filenames.CHECKPOINTS, task, manifest.identity(stage.folder))
        return say(f"{paths.label(stage.folder)} is up to date ({manifest.short(found.digest)})")

    with stage.writing() if distributed.FIRST else nullcontext(run_dir / ".adapter.partial") as work:
        checkpoint = (
            checkpoints.prepare(
                run_dir / filenames.CHECKPOINTS, task, options.force, manifest.identity(stage.folder), say
            )
            if distributed.FIRST
            else None
        )
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing below may reach for the network
        from datasets import load_from_disk

        from lockstep.model import networks
        from lockstep.prompts import template
        from lockstep.training import early_stopping, progress, sample_answers, setup, sigterm

        stop = sigterm.Termination()
        on = stage.device = networks.device()
        distributed.join(on == "cpu")
        checkpoint = distributed.from_first(checkpoint)

        # --- model ---
        dtype = networks.compute_dtype(settings.train.dtype, on)
        if settings.method == "full" and settings.train.dtype == "float16" and on == "cpu":
            # it would compute in float32, and say otherwise
            raise UserError("--train.dtype float16 needs a GPU with --method full: take bfloat16 or float32")
        splits = {
            split: load_from_disk(run_dir / filenames.DATA / split).select_columns(["input_ids", "labels", "row"])
            for split in ("train", "validation")
        }
        held_out = splits["validation"] if len(splits["validation"]) else None
        if held_out is None and (settings.train.early_stopping_patience or settings.train.load_best_model_at_end):
            raise UserError(
                "--train.early_stopping_patience and load_best_model_at_end go by held-out rows, and there are none: "
                "set --data.validation_share or --data.validation_file"
            )
        chat_template = (run_dir / filenames.DATA / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
        chat = template.load(settings.model.folder, chat_template, settings.data.allow_tokens)
        shown = progress.Progress(run_dir, say, lambda: [], distributed.FIRST)
        watchers = [shown, early_stopping.HeldOut(settings.train), stop]
        pad = chat.tokenizer.pad_token_id
        made = setup.build(
            settings, on, dtype, splits["train"], held_out, 0 if pad is None else pad, watchers, checkpoint
        )
        trainer = made.trainer
        rows = "end to end" if trainer.collate.packed else "padded"
        if settings.method == "full" and (unused := [key for key in settings.explicit if key.startswith("lora.")]):
            say(f"note: --method full trains no adapter: {', '.join(unused)} is not used")
        say(f"{settings.method} on {on} in {dtype}: {made.trainable:,} parameters are trained, rows {rows}")

        # --- train ---
        shown.watch(trainer)
        if held_out is not None and distributed.FIRST and not distributed.SHARDED:
            asked = [held_out[place] for place in range(min(settings.train.sample_rows, len(held_out)))]
            shown.answer = sample_answers.answerer(
                trainer.network, chat, asked, settings.train.sample_tokens, trainer.autocast
            )
        stop.reduce = trainer.accelerator.reduce if distributed.PROCESSES > 1 else None
        if checkpoint is None and distributed.FIRST:
            progress.forget(run_dir)
        start = checkpoint and setup.resume(trainer, checkpoint, run_dir, say)
        started = time.monotonic()
        if start or not checkpoint:
            setup.advise_on_memory(
                lambda: trainer.train(resume_from_checkpoint=start and str(start)), settings, trainer
            )
        seconds = time.monotonic() - started
        held_out_loss = setup.finish(trainer, settings, stop.asked, say)

        # --- save, manifest last ---
        counted = atomic.read_json(run_dir / filenames.DATA / filenames.LEDGER)["splits"]["train"]
        metrics = {
            "train_loss": trainer.mean_loss(),
            **held_out_loss,
            "train_rows": counted["rows"],
            "supervised_tokens": counted["supervised_tokens"],
            "steps": trainer.state.global_step,
            "tokens_per_second": round(trainer.tokens * distributed.PROCESSES / seconds, 1),
            "train_seconds": round(seconds, 1),
            "peak_memory_bytes": setup.peak_memory(on),
            "trainable_parameters": made.trainable,
            "rows_in_a_pass": trainer.rows_in_a_pass,
            "processes": distributed.PROCESSES,
            "device": on,
            "dtype": str(dtype).split(".")[-1],
        }
        with disk_errors():
            save(trainer, chat, settings, metrics, work)
        if made.fast:
            made.fast.undo(trainer.model)  # what is remembered is what PEFT computes, as everyone will load it
        if distributed.FIRST:
            remember(trainer, settings, dtype, work)
        stage.metrics = metrics
        distributed.wait()
    if not distributed.FIRST:
        return None
    checkpoints.close(run_dir / filenames.CHECKPOINTS, task, manifest.identity(stage.folder))
    loss_text = f", held-out loss {metrics['eval_loss']:.4f}" if "eval_loss" in metrics else ""
    print(f"{paths.label(stage.folder)} is complete: {metrics['steps']} steps in {seconds:.0f} s{loss_text}")


if __name__ == "__main__":
    cli.run(main)
