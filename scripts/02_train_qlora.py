"""Stage 02: train a LoRA adapter on a 4-bit base (QLoRA), or on a plain one (--method lora).

Reads   models/<name>/ and outputs/<run>/data/
Writes  outputs/<run>/adapter/ : adapter_model.safetensors, adapter_config.json, tokenizer, chat
        template, contract.json, base_tensors.json (hashes of the weights it was trained on), metrics.json,
        README.md (model card), manifest.json
        While it runs: outputs/<run>/checkpoints/, metrics.jsonl, runs/ (TensorBoard)
Run     make train
        python scripts/02_train_qlora.py --config configs/demo.yaml --train.learning_rate 1e-4

An interrupted training goes on from its last checkpoint when the same command runs again.
"""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import checkpoints, cli, contract, manifest, paths
from lockstep.config import Settings, flatten
from lockstep.errors import UserError
from lockstep.stage import Stage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lockstep.template import Template
    from lockstep.trainer import SupervisedTrainer


def attach_adapter(network: "PreTrainedModel", settings: Settings) -> Any:
    """The base with a fresh LoRA adapter; the adapter's weights are float32."""
    from peft import LoraConfig, get_peft_model

    lora = settings.lora.model_dump() | {"target_modules": list(settings.lora.target_modules)}
    if settings.lora.target_modules == ("all-linear",):
        lora["target_modules"] = "all-linear"
    try:
        # prepare_model_for_kbit_training is left out on purpose: it would turn embeddings and
        # norms into float32, and the model that is served computes with them as they are.
        model = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **lora))
    except ValueError as error:
        raise UserError(f"--lora.target_modules: {error}") from error
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    if any(parameter.requires_grad for layer in (head, embedding) for parameter in layer.parameters()):
        raise UserError(
            "--lora.target_modules: adapters of embeddings or the output layer cannot be merged or served here"
        )
    return model


def training_arguments(settings: Settings, on: str, dtype: "torch.dtype", evaluate: bool) -> Any:
    """transformers' TrainingArguments from the train section, which uses its names."""
    from transformers import TrainingArguments

    train = settings.train.model_dump(exclude={"dtype", "padding_free"})
    if train["optim"] == "auto":
        train["optim"] = "paged_adamw_8bit" if on == "cuda" else "adamw_torch"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(settings.run_dir / "runs")
    arguments = TrainingArguments(
        output_dir=str(settings.run_dir / "checkpoints"),
        **train,
        bf16=str(dtype) == "torch.bfloat16",
        fp16=str(dtype) == "torch.float16",
        use_cpu=on == "cpu",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps" if evaluate else "no",
        save_strategy="steps",
        logging_first_step=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        prediction_loss_only=True,
        disable_tqdm=True,  # ours shows tokens/s
        report_to="tensorboard",
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one GPU: never nn.DataParallel
    return arguments


def progress(run_dir: Path) -> Any:
    """A callback: a bar in a terminal, lines elsewhere, metrics.jsonl, and sealed checkpoints."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def on_train_begin(self, args, state, control, **_):  # type: ignore[no-untyped-def]
            self.started = time.monotonic()
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=None)

        def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
            self.bar.update()

        def on_log(self, args, state, control, logs, **_):  # type: ignore[no-untyped-def]
            speed = self.trainer.tokens / (time.monotonic() - self.started)
            record = {"step": state.global_step, **logs, "tokens_per_second": round(speed, 1)}
            with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            shown = {key: logs[key] for key in ("loss", "eval_loss", "learning_rate") if key in logs}
            text = "  ".join(f"{key} {float(value):.4g}" for key, value in shown.items())
            self.bar.set_postfix_str(f"{text}  {speed:.0f} tokens/s")
            if self.bar.disable and shown:
                print(f"step {state.global_step}/{state.max_steps}  {text}  {speed:.0f} tokens/s")

        def on_save(self, args, state, control, **_):  # type: ignore[no-untyped-def]
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_train_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
            self.bar.close()

    return Progress()


def resume(trainer: "SupervisedTrainer", checkpoint: Path, metrics_file: Path) -> Path | None:
    """What train() must resume from. A checkpoint of the last step is put in place instead: None.

    Trainer itself would train one step more. Lines of metrics.jsonl after the checkpoint go.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    print(f"resuming from {paths.label(checkpoint)}")
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if metrics_file.exists():
        # a line that a kill cut off has no line break
        lines = [
            line for line in metrics_file.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"
        ]
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        metrics_file.write_text("".join(kept), encoding="utf-8")
    if state.global_step < state.max_steps:
        return checkpoint
    set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))
    trainer.state = state
    return None


def mean_loss(log_history: list[dict[str, float]]) -> float:
    """The mean of the logged training losses; it is the same after a resume."""
    losses = [log["loss"] for log in log_history if "loss" in log]
    return sum(losses) / len(losses)


def last_evaluation(trainer: "SupervisedTrainer") -> dict[str, float]:
    """The evaluation of the final weights, where training ended with one."""
    logs = [log for log in trainer.state.log_history if log["step"] == trainer.state.global_step]
    return next(({k: log[k] for k in ("eval_loss", "eval_perplexity")} for log in logs if "eval_loss" in log), {})


def peak_memory(on: str) -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    import torch

    if on == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def advise_on_memory(train: Callable[[], Any], settings: Settings) -> Any:
    """Run `train`; where memory runs out, say which settings to change, in numbers."""
    import torch

    try:
        return train()
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not memory:
            raise
        rows, window = settings.train.per_device_train_batch_size, settings.train.gradient_accumulation_steps
        advice = (
            f"--train.per_device_train_batch_size {rows // 2} --train.gradient_accumulation_steps {window * 2}"
            if rows > 1
            else f"--data.max_length {settings.data.max_length // 2}"
        )
        checkpointing = "" if settings.train.gradient_checkpointing else " or --train.gradient_checkpointing true"
        raise UserError(f"out of memory: try {advice}{checkpointing}") from error


def save_adapter(model: Any, chat: "Template", settings: Settings, metrics: dict[str, Any], work: Path) -> None:
    """Everything that later stages and other people need of an adapter."""
    from lockstep import models

    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for name, weight in weights.items():
        if not weight.isfinite().all() or ("lora_B" in name and not weight.any()):
            raise UserError(
                f"{name} is not finite or was never changed: nothing is published; lower --train.learning_rate, "
                f"or train for more steps, with --force"
            )
    model.peft_config["default"].base_model_name_or_path = settings.model.origin
    model.save_pretrained(work, save_embedding_layers=False)
    config_file = work / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # PEFT writes a set in an order of its own; equal adapters must be equal files.
    ordered = {key: sorted(v) if isinstance(v, list) and key == "target_modules" else v for key, v in config.items()}
    manifest.write_json(config_file, ordered)
    chat.tokenizer.save_pretrained(work)
    hashes = {
        name.removeprefix("base_model.model.").replace(".base_layer", "") + ".weight": models.tensor_sha256(
            models.dequantize(layer)
        )
        for name, layer in models.linear4bit(model)
    }
    manifest.write_json(work / "base_tensors.json", {"dequantized": hashes, "dtype": str(model.dtype).split(".")[-1]})
    manifest.write_json(work / "metrics.json", metrics)
    # for servers that load the untouched base: where the answers that this adapter learned end
    manifest.write_json(work / "generation_config.json", {"eos_token_id": chat.stop_ids})
    (work / "README.md").write_text(model_card(settings, metrics), encoding="utf-8")


def model_card(settings: Settings, metrics: dict[str, Any]) -> str:
    """The adapter's README, from what is known and nothing else. No timings: they differ between equal runs."""
    base = settings.model.origin
    loss = f"{metrics['eval_loss']:.4f}" if "eval_loss" in metrics else "not measured"
    method = "QLoRA on a 4-bit base" if settings.method == "qlora" else "LoRA"
    rows = "\n".join(f"| {key} | {value} |" for key, value in flatten(settings.sections("lora", "train")).items())
    return (
        f"---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: text-generation\ntags: [lora, sft]\n---\n\n"
        f"# {settings.run}\n\nAn adapter for {base}, trained with {method} on {metrics['train_rows']} rows "
        f"({metrics['supervised_tokens']} supervised tokens an epoch), {metrics['steps']} steps. "
        f"Loss on held-out rows: {loss} nats a token.\n\n| setting | value |\n|---|---|\n{rows}\n"
    )


def main() -> None:
    parser = cli.parser(__doc__ or "", "model", "method", "lora", "quantization", "train")
    cli.stage_options(parser)
    options = parser.parse_args()
    settings = cli.settings_from(options)
    run_dir = settings.run_dir
    if options.check:
        sys.exit(0 if manifest.looks_complete(run_dir / "adapter") else 3)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError("training runs in one process here: start it without torchrun or accelerate launch")
    if settings.method == "lora" and any(key.startswith("quantization.") for key in settings.explicit):
        raise UserError("--method lora quantizes nothing: drop the quantization settings, or choose --method qlora")

    # --- inputs ---
    data = manifest.require(run_dir / "data", "data")
    settings = settings.inherit(data.config, paths.label(run_dir / "data"))
    manifest.require(settings.model.folder, "download")
    sections = settings.sections("model", "data", "method", "lora", "quantization", "train")
    inputs = [settings.model.folder, run_dir / "data"]
    stage = Stage("train", run_dir / "adapter", sections, inputs, options.force)
    if found := stage.finished():
        return print(f"{paths.label(stage.folder)} is up to date ({manifest.short(found.digest)})")

    with stage.writing() as work:
        task = {"config": stage.config, "inputs": stage.inputs}
        checkpoints.claim(run_dir / "checkpoints", task, options.force)
        checkpoint, broken = checkpoints.newest(run_dir / "checkpoints")
        for folder in broken:
            print(f"not whole, and so not resumed from: {paths.label(folder)}")
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing below may reach for the network
        from datasets import load_from_disk
        from transformers import PrinterCallback, set_seed

        from lockstep import models, template
        from lockstep.collator import Collator, PackingCollator
        from lockstep.trainer import SupervisedTrainer

        # --- model ---
        set_seed(settings.train.seed)
        on = stage.device = models.device()
        dtype = models.compute_dtype(settings.train.dtype, on)
        chat_template = (run_dir / "data" / template.FILE).read_text(encoding="utf-8")
        chat = template.load(settings.model.folder, chat_template, settings.data.allow_tokens)
        quantization = settings.quantization if settings.method == "qlora" else None
        base = models.load(settings.model.folder, dtype, on, quantization)
        model = attach_adapter(base, settings)
        if settings.train.padding_free and models.rows_see_each_other(model):
            raise UserError("--train.padding_free: rows of this model would see each other; leave it out")
        trainable, total = model.get_nb_trainable_parameters()
        print(f"{settings.method} on {on} in {dtype}: {trainable:,} of {total:,} parameters are trained")

        # --- data ---
        splits = {
            split: load_from_disk(run_dir / "data" / split).select_columns(["input_ids", "labels"])
            for split in ("train", "validation")
        }
        pad = chat.tokenizer.pad_token_id

        # --- train ---
        arguments = training_arguments(settings, on, dtype, evaluate=len(splits["validation"]) > 0)
        shown = progress(run_dir)
        trainer = shown.trainer = SupervisedTrainer(
            model=model,
            args=arguments,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"] if len(splits["validation"]) else None,
            data_collator=PackingCollator() if settings.train.padding_free else Collator(pad if pad is not None else 0),
            callbacks=[shown],
        )
        trainer.remove_callback(PrinterCallback)  # it would print every log line again
        if checkpoint is None:
            (run_dir / "metrics.jsonl").unlink(missing_ok=True)
            shutil.rmtree(run_dir / "runs", ignore_errors=True)
        start = checkpoint and resume(trainer, checkpoint, run_dir / "metrics.jsonl")
        started = time.monotonic()
        if start or not checkpoint:
            advise_on_memory(lambda: trainer.train(resume_from_checkpoint=start and str(start)), settings)
        seconds = time.monotonic() - started
        if trainer.state.global_step != trainer.state.max_steps:
            raise UserError(f"training stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
        held_out: dict[str, float] = {}
        if len(splits["validation"]):
            held_out = last_evaluation(trainer) or advise_on_memory(trainer.evaluate, settings)

        # --- save, manifest last ---
        metrics = {
            "train_loss": mean_loss(trainer.state.log_history),
            **held_out,
            "train_rows": data.metrics["train"]["rows"],
            "supervised_tokens": data.metrics["train"]["supervised_tokens"],
            "steps": trainer.state.global_step,
            "tokens_per_second": round(trainer.tokens / seconds, 1),
            "train_seconds": round(seconds, 1),
            "peak_memory_bytes": peak_memory(on),
            "trainable_parameters": trainable,
            "device": on,
            "dtype": str(dtype).split(".")[-1],
        }
        save_adapter(model, chat, settings, metrics, work)
        shutil.copyfile(run_dir / "data" / contract.FILE, work / contract.FILE)
        stage.metrics = metrics
    checkpoints.close(run_dir / "checkpoints", task)
    loss = f", held-out loss {metrics['eval_loss']:.4f}" if "eval_loss" in metrics else ""
    print(f"{paths.label(stage.folder)} is complete: {metrics['steps']} steps in {seconds:.0f} s{loss}")


if __name__ == "__main__":
    cli.run(main)
