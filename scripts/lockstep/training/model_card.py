"""The model card of an adapter: what is known about the training, and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockstep.model import coverage as account
from lockstep.settings.tree import Settings, flatten

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
METHODS = {"qlora": "QLoRA on a 4-bit base", "lora": "LoRA", "full": "training of all weights"}


def text(
    settings: Settings,
    metrics: Mapping[str, Any],
    ledger: Mapping[str, Any],
    stops: list[int],
    coverage: Mapping[str, Any],
) -> str:
    """Markdown with the Hub's metadata. No timings: they would differ between equal runs.

    Args:
        metrics: those of the training; `eval_loss` where there were held-out rows.
        ledger: the data stage's account of every file.
        stops: ids of the tokens that end an answer.
        coverage: the account of the base's weights.
    """
    from huggingface_hub import ModelCard, ModelCardData

    full = settings.method == "full"
    metadata = ModelCardData(
        base_model=settings.model.origin,
        library_name="transformers" if full else "peft",
        pipeline_tag="text-generation",
        tags=["sft"] if full else ["lora", "sft"],
    )
    card = ModelCard.from_template(
        metadata,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        run=settings.run,
        kind="model" if full else "adapter",
        base=settings.model.origin,
        method=METHODS[settings.method],
        quantized=settings.method == "qlora",
        metrics=metrics,
        held_out=_held_out(metrics),
        stops=" or ".join(map(str, stops)),
        files=ledger["files"],
        data=settings.data,
        weights=account.table(coverage),
        settings=_used(settings),
    )
    return str(card) + "\n"


def _held_out(metrics: Mapping[str, Any]) -> str:
    if "eval_loss" not in metrics:
        return "not measured, as there were no held-out rows"
    return f"{metrics['eval_loss']:.4f} nats per token (perplexity {metrics['eval_perplexity']:.2f})"


def _used(settings: Settings) -> dict[str, Any]:
    """The settings that this method read."""
    sections = ["train"]
    if settings.method == "qlora":
        sections.insert(0, "quantization")
    if settings.method != "full":
        sections.insert(0, "lora")
    return flatten(settings.sections(*sections))
