"""The model card of an adapter: what is known of the training, and nothing else."""

from collections.abc import Mapping
from typing import Any

from lockstep.settings.tree import Settings, flatten

METHODS = {"qlora": "QLoRA on a 4-bit base", "lora": "LoRA", "full": "training of all weights"}


def write(settings: Settings, metrics: Mapping[str, Any], ledger: Mapping[str, Any], stops: list[int]) -> str:
    """Markdown with the Hub's header. No timings: they differ between equal runs.

    Args:
        metrics: those of the training; `eval_loss` where there were held-out rows.
        ledger: the data stage's account.
        stops: ids of the tokens that end an answer.
    """
    base, kind = settings.model.origin, "model" if settings.method == "full" else "adapter"
    library = "transformers" if settings.method == "full" else "peft"
    data = "\n".join(
        f"| {name} | {account['lines']} | {account['kept']} | {sum(account['dropped'].values())} |"
        for name, account in ledger["files"].items()
    )
    held_out = (
        f"{metrics['eval_loss']:.4f} nats a token (perplexity {metrics['eval_perplexity']:.2f})"
        if "eval_loss" in metrics
        else "not measured: no held-out rows"
    )
    rows = "\n".join(
        f"| {key} | {value} |"
        for key, value in flatten(settings.sections("lora", "quantization", "train")).items()
        if not (key.startswith("quantization.") and settings.method != "qlora")
        and not (key.startswith("lora.") and settings.method == "full")
    )
    return f"""---
base_model: {base}
library_name: {library}
pipeline_tag: text-generation
tags: [{"sft" if settings.method == "full" else "lora, sft"}]
---

# {settings.run}

{"A model" if settings.method == "full" else "An adapter"} made from {base} by {METHODS[settings.method]}: {metrics["train_rows"]} rows with
{metrics["supervised_tokens"]} supervised tokens an epoch, {metrics["steps"]} optimizer steps, computed in {metrics["dtype"]} on {metrics["device"]}.

Loss on held-out rows: {held_out}. Mean training loss: {metrics["train_loss"]:.4f}.

![loss over the steps](loss.png)

## Use

The chat template of this folder is the one of training; an answer ends at token {" or ".join(map(str, stops))}.
`make merge` and `make serve` make an endpoint of this {kind} and prove that it computes what was trained.
{"" if settings.method != "qlora" else "It was trained on the base's weights after their way through 4 bits: on the original ones it is another model."}

## Data

| file | lines | kept | dropped |
|---|---|---|---|
{data}

Template: {settings.data.template}; longest row {settings.data.max_length} tokens; supervised: {settings.data.supervise}.
What such rows do not show, this {kind} was not taught: try it on questions of your own before relying on it.

## Settings

| setting | value |
|---|---|
{rows}
"""
