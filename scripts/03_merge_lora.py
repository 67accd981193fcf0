"""Stage 03: merge the adapter into its base, and measure that the result is the trained model.

Reads   models/<name>/, outputs/<run>/data/ (validation rows) and outputs/<run>/adapter/
        after --method full no base: the adapter's folder holds all weights
Writes  outputs/<run>/merged/ : a Hugging Face model that vLLM loads as it is, merge_report.json
        with --base: outputs/<run>/base/, the dequantized base on which vLLM serves the adapter
Run     make merge
        python scripts/03_merge_lora.py --config configs/demo.yaml

Two merges are possible after QLoRA: onto the original weights, and onto the dequantized 4-bit
ones that the adapter saw. Both are compared with the trained model; the closer one ships.
After full training nothing is merged: the weights become bfloat16, and are compared all the same.
"""

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from lockstep import cli, manifest, paths
from lockstep.config import Settings
from lockstep.errors import UserError
from lockstep.stage import Stage

MAX_GAP = 0.05  # nats a token between the trained model's own record and the model that is read back


def probe_batches(data: Path, pad: int) -> list[Any]:
    """The held-out rows that a candidate is measured on, as batches."""
    from lockstep import reference
    from lockstep.collator import Collator

    rows = reference.probe_rows(data)
    return [Collator(pad)(rows[start : start + 8]) for start in range(0, len(rows), 8)]


def load_trained(settings: Settings, adapter: Path) -> Any:
    """The trained model itself: all its weights, or the base as training loaded it, with the adapter."""
    import torch
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    from lockstep import merging, models, servable

    on = models.device()
    if settings.method == "full":
        return models.load(adapter, torch.float32, on)
    quantization = settings.quantization if settings.method == "qlora" else None
    base = models.load(settings.model.folder, merging.trained_dtype(adapter), on, quantization)
    # PEFT rounds DoRA's tensors to the base's dtype while it loads, and without low_cpu_mem_usage
    # saved modules, too; training computed with them as they are on disk.
    with warnings.catch_warnings():
        # that a part of tied weights was trained, which the merge unties
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        network = PeftModel.from_pretrained(base, adapter, low_cpu_mem_usage=True)
    set_peft_model_state_dict(network, load_file(adapter / servable.WEIGHTS))
    return network


def trained_log_probs(settings: Settings, adapter: Path, batches: list[Any]) -> list[tuple[Any, Any]]:
    """Those of the trained model, computed in the dtype of training."""
    from lockstep import merging, reference

    return list(reference.log_probs(load_trained(settings, adapter), batches, merging.trained_dtype(adapter)))


def reference_gap(adapter: Path, trained: list[tuple[Any, Any]]) -> float:
    """Mean distance, in nats, of the model as read back from what training remembers of itself.

    Raises:
        UserError: it is another model.
    """
    from lockstep import reference

    gap = reference.gap(adapter, trained)
    if gap > MAX_GAP:
        raise UserError(
            f"the adapter, read back, is {gap:.3f} nats a token from the model that was trained, by its {reference.FILE}: "
            f"it was changed, or this machine computes otherwise; run `make train ARGS=--force` here"
        )
    return gap


def eval_loss(found: list[tuple[Any, Any]]) -> float:
    """Mean negative log-likelihood of the targets, in nats."""
    total: float = -sum(one.gather(1, targets[:, None]).sum().item() for one, targets in found)
    return total / sum(len(targets) for _, targets in found)


def measure(folder: Path, batches: list[Any], trained: list[tuple[Any, Any]]) -> dict[str, float]:
    """How far a merged model on disk is from the trained one, in nats per supervised position."""
    import torch

    from lockstep import merging, models, reference

    network = models.load(folder, merging.DTYPE, models.device())
    divergences, agreements, losses = [], [], []
    for (wanted, targets), (found, _) in zip(
        trained, reference.log_probs(network, batches, torch.float32), strict=True
    ):
        divergences.append((wanted.exp() * (wanted - found)).sum(dim=-1))
        agreements.append(found.argmax(-1) == wanted.argmax(-1))
        losses.append(-found.gather(1, targets[:, None]))
    divergence = torch.cat(divergences)
    return {
        "kl_mean": divergence.mean().item(),
        "kl_max": divergence.max().item(),
        "top1_agreement": torch.cat(agreements).float().mean().item(),
        "eval_loss": torch.cat(losses).mean().item(),
    }


def strategies_of(settings: Settings, adapter: Path) -> dict[str, Any]:
    """The merges to try: what gives each its 4-bit weights, or None where the weights stay as they are."""
    from lockstep import merging

    strategies: dict[str, merging.Dequantizer | None] = {"original": None}
    if settings.method == "qlora":
        strategies["dequantized"] = merging.Dequantizer(adapter, settings.quantization)
    elif settings.merge.strategy == "dequantized":
        raise UserError(f"--merge.strategy dequantized: nothing was quantized in a {settings.method} run")
    wanted = settings.merge.strategy
    return strategies if wanted == "auto" else {wanted: strategies[wanted]}


def merge(settings: Settings, adapter: Path, work: Path) -> dict[str, Any]:
    """Write the candidates, measure each, keep the closest in `work`. Returns the report."""
    from datasets import disable_progress_bars
    from transformers import AutoTokenizer

    from lockstep import merging, updates

    disable_progress_bars()
    full = settings.method == "full"
    strategies = strategies_of(settings, adapter)
    base, trained_part = (adapter, updates.Adapter()) if full else (settings.model.folder, updates.read(adapter))
    tokenizer = AutoTokenizer.from_pretrained(adapter, local_files_only=True)
    batches = probe_batches(settings.run_dir / "data", tokenizer.pad_token_id or 0)
    trained = trained_log_probs(settings, adapter, batches)
    gap = reference_gap(adapter, trained)
    candidates: dict[str, Any] = {"original": None, "dequantized": None}
    for name, dequantizer in strategies.items():
        out = work / name
        merging.write_weights(base, out, trained_part, dequantizer)
        merging.write_rest(base, adapter, out)
        candidates[name] = measure(out, batches, trained)
        print(
            f"{'in bfloat16' if full else f'onto {name} weights'}: "
            + "  ".join(f"{k} {v:.5f}" for k, v in candidates[name].items())
        )
    best = min(strategies, key=lambda name: candidates[name]["kl_mean"])
    for name in strategies:
        if name == best:
            for file in (work / name).iterdir():
                file.rename(work / file.name)
        shutil.rmtree(work / name)
    return {
        "candidates": candidates,
        "trained": {"eval_loss": eval_loss(trained), "reference_gap": gap},
        "rows": sum(len(batch["input_ids"]) for batch in batches),
        "positions": sum(len(targets) for _, targets in trained),
        "strategy": best,
        "bound": settings.merge.max_kl,
        "passed": candidates[best]["kl_mean"] <= settings.merge.max_kl,
    }


def write_merged(stage: Stage, settings: Settings, adapter: Path) -> None:
    """outputs/<run>/merged/, or nothing but merged.failed/merge_report.json."""
    failed, full = stage.folder.with_name("merged.failed"), settings.method == "full"
    with stage.writing() as work:
        report = merge(settings, adapter, work)
        manifest.write_json(work / "merge_report.json", report)
        stage.metrics = report["candidates"][report["strategy"]]
        if not report["passed"]:
            failed.mkdir(exist_ok=True)
            manifest.write_json(failed / "merge_report.json", report)
            otherwise = "" if full else "serve the adapter (make serve-lora), and "
            raise UserError(
                f"the best merge is {stage.metrics['kl_mean']:.4f} nats from the trained model, more than "
                f"--merge.max_kl {report['bound']}: nothing ships; {otherwise}see {paths.label(failed)}/merge_report.json"
            )
    shutil.rmtree(failed, ignore_errors=True)
    how = "all weights in bfloat16" if full else f"merged onto the {report['strategy']} weights"
    print(
        f"{paths.label(stage.folder)} is complete: {how}, mean KL to the trained model {stage.metrics['kl_mean']:.5f} nats"
    )


def write_base(stage: Stage, settings: Settings, adapter: Path) -> None:
    """outputs/<run>/base/: the base with the weights that the adapter was trained on."""
    from lockstep import merging, updates

    with stage.writing() as work:
        dequantizer = merging.Dequantizer(adapter, settings.quantization)
        merging.write_weights(settings.model.folder, work, updates.Adapter(), dequantizer)
        merging.write_rest(settings.model.folder, adapter, work)
    print(f"{paths.label(stage.folder)} is complete: {len(dequantizer.hashes)} tensors as the adapter saw them")


def main() -> None:
    parser = cli.parser(__doc__ or "", "merge")
    cli.stage_options(parser)
    parser.add_argument("--base", action="store_true", help="write the dequantized base for serving the adapter")
    options = parser.parse_args()
    settings = cli.settings_from(options)
    run_dir = settings.run_dir
    folder = run_dir / ("base" if options.base else "merged")
    if options.check:
        sys.exit(0 if manifest.looks_complete(folder) else 3)

    # --- inputs ---
    adapter = manifest.require(run_dir / "adapter", "train")
    settings = settings.inherit(adapter.config, paths.label(run_dir / "adapter"))
    inputs = [run_dir / "adapter"]
    if settings.method != "full":
        manifest.require(settings.model.folder, "download")
        inputs.insert(0, settings.model.folder)
    if options.base and settings.method != "qlora":
        why = "there is no adapter" if settings.method == "full" else "the adapter was trained on the base as it is"
        return print(f"{why}: no other one is needed")
    if options.base:
        stage = Stage("base", folder, settings.sections("model", "quantization"), inputs, options.force)
    else:
        # no require(): new rows in the user's file make the data stage stale, not this adapter
        sections = settings.sections("model", "data", "method", "lora", "quantization", "merge")
        stage = Stage("merge", folder, sections, [*inputs, run_dir / "data"], options.force)
    if found := stage.finished():
        return print(f"{paths.label(folder)} is up to date ({manifest.short(found.digest)})")

    # --- work, save, manifest last ---
    os.environ["HF_HUB_OFFLINE"] = "1"
    (write_base if options.base else write_merged)(stage, settings, run_dir / "adapter")


if __name__ == "__main__":
    cli.run(main)
