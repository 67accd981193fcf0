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
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths
from lockstep.artifacts import filenames, lineage, manifest
from lockstep.artifacts.stage import Stage
from lockstep.data import user_files
from lockstep.errors import UserError, disk_errors
from lockstep.model import coverage, vllm_support
from lockstep.processes import busy, distributed
from lockstep.settings import cli, commands
from lockstep.settings.tree import Settings
from lockstep.training import arguments, checkpoints

if TYPE_CHECKING:
    from lockstep.training.setup import Training

say: Callable[..., None] = cli.say if distributed.FIRST else lambda *_: None


def check(settings: Settings) -> None:
    """Refuse, before anything is loaded, what could not be trained or served as the settings say."""
    distributed.check()
    if settings.method != "qlora" and any(key.startswith("quantization.") for key in settings.explicit):
        raise UserError(
            f"--method {settings.method} quantizes nothing: drop the quantization settings, or choose --method qlora"
        )
    vllm_support.check(settings)
    train = settings.train
    arguments.check(train)
    if train.auto_batch and distributed.PROCESSES > 1:
        raise UserError("--train.auto_batch is for one process: several would have to run out of memory at once")
    if train.use_liger_kernel and find_spec("liger_kernel") is None:
        raise UserError(
            "--train.use_liger_kernel needs the package liger-kernel, on an NVIDIA GPU: pip install liger-kernel"
        )
    if settings.lora.start_from:
        vllm_support.check_start(settings)


def with_inputs(settings: Settings, force: bool) -> tuple[Settings, Stage]:
    """The settings, with those that the data was made with, and the stage on its inputs.

    Raises:
        UserError: data or base are not there, or the data was made with other settings.
    """
    data_folder = settings.run_dir / filenames.DATA
    settings, _ = lineage.require(settings, data_folder, "data")
    manifest.require(settings.model.folder, "download")
    inputs = [settings.model.folder, data_folder]
    if settings.lora.start_from:
        inputs.append(paths.data_file(settings.lora.start_from) / filenames.ADAPTER_WEIGHTS)
    sections = settings.sections("model", "data", "method", "lora", "quantization", "train")
    folder = settings.run_dir / filenames.ADAPTER
    return settings, Stage("train", folder, sections, inputs, force, config_file=settings.config_file)


def train(settings: Settings, stage: Stage, checkpoint: Path | None, work: Path) -> dict[str, Any]:
    """Train, and write into `work` what is published. Returns its metrics.

    Args:
        checkpoint: from which the training goes on; known to the first process alone.
    """
    with busy.waiting("loading PyTorch and transformers"):
        from lockstep.model import networks
        from lockstep.prompts import contract, template
        from lockstep.training import early_stopping, progress, publish, sample_answers, schedule, setup, sigterm

    stop = sigterm.Termination()
    on = stage.device = networks.device()
    distributed.join(on == "cpu", settings.train.training_args.get("ddp_timeout"))
    checkpoint = distributed.from_first(checkpoint)

    # --- rows and model ---
    dtype = setup.compute_dtype(settings, on)
    rows = setup.read_rows(settings)
    data = settings.run_dir / filenames.DATA
    chat_template, as_text = (data / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8"), contract.text_tokens_of(data)
    chat = template.load(settings.model.folder, chat_template, settings.data.allow_tokens, as_text)
    shown = progress.Progress(settings.run_dir, say, lambda: [], distributed.FIRST)
    callbacks = [shown, early_stopping.HeldOut(settings.train), stop, schedule.PeakCheck(say)]
    pad = chat.tokenizer.pad_token_id or 0
    training = setup.build(settings, on, dtype, rows.train, rows.held_out, pad, callbacks, checkpoint)
    trainer = training.trainer
    announce(settings, training, f"{on} in {dtype}")

    # --- train ---
    shown.watch(trainer)
    if rows.held_out is not None and distributed.FIRST and not distributed.MAY_BE_SHARDED:
        shown.answer = sample_answers.of_training(settings.train, trainer, chat, rows.held_out)
    stop.reduce = trainer.accelerator.reduce if distributed.PROCESSES > 1 else None
    if checkpoint is None and distributed.FIRST:
        progress.forget(settings.run_dir)
    start = checkpoint and setup.resume(trainer, checkpoint, settings.run_dir, say)
    trainer.started = time.monotonic()
    if start or not checkpoint:
        setup.advise_on_memory(lambda: trainer.train(resume_from_checkpoint=start and str(start)), settings, trainer)
    seconds = trainer.seconds()
    held_out_loss = setup.finish(trainer, settings, stop.asked, say)

    # --- save ---
    metrics = publish.metrics(training, settings, dtype, held_out_loss, seconds)
    with disk_errors(), busy.waiting("saving, with the hashes of what was trained on"):
        publish.save(training, chat, settings, metrics, work)
    if training.fast:
        training.fast.undo(trainer.model)  # what is remembered is what PEFT computes, as everyone will load it
    if distributed.FIRST:
        publish.remember(trainer, settings, dtype, work)
    return metrics


def announce(settings: Settings, training: "Training", where: str) -> None:
    """Say what will be trained, and which settings have no effect."""
    unused = [key for key in settings.explicit if key.startswith("lora.")]
    if settings.method == "full" and unused:
        say(f"note: --method full trains no adapter: {', '.join(unused)} is not used")
    rows = "end to end" if training.trainer.collate.packed else "padded"
    say(f"{settings.method} on {where}: {training.trainable:,} parameters are trained, rows {rows}")
    say(coverage.summary(training.account))
    if (findings := training.findings) and findings.left_out:
        say(f"note: all-linear leaves out what no token reaches: {', '.join(findings.left_out)}")
    if share := coverage.share_of_idle_experts(training.account):
        say(f"note: the experts, {share:.0%} of all weights, get no adapter: see --lora.target_parameters")
    if findings is None:
        say("note: no process holds all weights, so the dry run tried names and rows, and no gradients")
    if findings and findings.slow:
        say(f"note: PEFT computes the adapters, which is slower: {findings.slow}")


def main() -> None:
    parser = cli.parser(__doc__ or "", "model", "method", "lora", "quantization", "train")
    cli.stage_options(parser)
    options = parser.parse_args()
    settings = cli.settings_from(options)
    check(settings)
    if options.check:
        code = user_files.check_exit_code(settings, "train", settings.run_dir / filenames.ADAPTER)
        sys.exit(0 if settings.adapter.path else code)  # stage 03 takes that adapter in, and nothing is trained

    commands.then("merge")
    settings, stage = with_inputs(settings, options.force)
    folder = settings.run_dir / filenames.CHECKPOINTS
    task = {"config": stage.config | {"processes": distributed.PROCESSES}, "inputs": stage.inputs}
    if earlier := stage.finished():
        if distributed.FIRST:
            checkpoints.close(folder, task, manifest.identity(stage.folder))
        say(f"{paths.label(stage.folder)} is up to date ({manifest.short(earlier.digest)})")
        return

    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing below may reach for the network
    publishing = stage.writing() if distributed.FIRST else nullcontext(settings.run_dir / ".adapter.partial")
    with checkpoints.telling_what_remains(folder, task, options.force), publishing as work:
        checkpoint = None
        if distributed.FIRST:
            replaced = manifest.identity(stage.folder)
            checkpoint = checkpoints.prepare(folder, task, options.force, replaced, say)
        stage.metrics = train(settings, stage, checkpoint, work)
        distributed.wait()
    if distributed.FIRST:
        checkpoints.close(folder, task, manifest.identity(stage.folder))
        loss = f", held-out loss {stage.metrics['eval_loss']:.4f}" if "eval_loss" in stage.metrics else ""
        seconds = stage.metrics["train_seconds"]
        cli.say(f"{paths.label(stage.folder)} is complete: {stage.metrics['steps']} steps in {seconds:.0f} s{loss}")


if __name__ == "__main__":
    cli.run(main)
