"""Stage 03: merge the adapter into its base, and measure that the result is the trained model.

Reads   models/<name>/, outputs/<run>/data/ (validation rows) and outputs/<run>/adapter/
        after --method full no base: the adapter's folder holds all weights
        with --adapter.path: an adapter that was trained elsewhere with PEFT, taken in as outputs/<run>/adapter/
Writes  outputs/<run>/merged/ : a Hugging Face model that vLLM loads as it is, merge_report.json
        with --base: outputs/<run>/base/, the dequantized base on which vLLM serves the adapter
Run     make merge
        python scripts/03_merge_lora.py --config configs/demo.yaml
        python scripts/03_merge_lora.py --config configs/mine.yaml --method lora --adapter.path FOLDER

Two merges are possible after QLoRA: onto the original weights, and onto the dequantized 4-bit
ones that the adapter saw. Both are compared with the trained model; the closer one ships.
After full training nothing is merged: the weights become bfloat16, and are compared all the same.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from lockstep import paths
from lockstep.artifacts import atomic, filenames, lineage, manifest
from lockstep.artifacts.stage import Stage
from lockstep.data import user_files
from lockstep.errors import UserError
from lockstep.merging import disk_check, serving_route
from lockstep.processes import busy, child_processes
from lockstep.serving import gate_foresight
from lockstep.settings import cli, commands
from lockstep.settings.tree import Settings

LIBRARIES = ("datasets", "safetensors.torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


def strategies_of(settings: Settings, adapter: Path) -> dict[str, Any]:
    """The merges to try, each with the `Dequantizer` of its base weights, or None where they stay as they are."""
    from lockstep.merging.dequantizer import Dequantizer

    strategies: dict[str, Dequantizer | None] = {"original": None}
    if settings.method == "qlora":
        strategies["dequantized"] = Dequantizer(adapter, settings.quantization)
    elif settings.merge.strategy == "dequantized":
        raise UserError(f"--merge.strategy dequantized: nothing was quantized in a {settings.method} run")
    choice = settings.merge.strategy
    return strategies if choice == "auto" else {choice: strategies[choice]}


def merge_candidates(settings: Settings, adapter: Path, work: Path) -> dict[str, Any]:
    """Write the candidates, measure each, and keep the closest in `work`. Returns the report."""
    full = settings.method == "full"
    # three models are measured, each in a process of its own, and all need the same libraries
    forks = child_processes.Forks((*LIBRARIES, *(() if full else ("peft",))))
    with busy.waiting("loading PyTorch and transformers"):
        from transformers import AutoTokenizer

        from lockstep.merging import certificate, merge, merged_folder
        from lockstep.model import adapter_delta, adapter_files, merge_plan

    strategies = strategies_of(settings, adapter)
    base = adapter if full else settings.model.folder
    change = adapter_delta.AdapterDelta() if full else adapter_files.read(adapter)
    kept = atomic.read_json(adapter / filenames.BASE_TENSORS).get("float32")  # after full training
    merge_plan.plan_merge(base, change)  # refuses a foreign base before anything is loaded
    pad = AutoTokenizer.from_pretrained(adapter, local_files_only=True).pad_token_id or 0
    hand_over = work / "measuring"
    hand_over.mkdir()
    trained = certificate.in_fresh_process(certificate.measure_trained, settings, adapter, pad, hand_over, forks=forks)
    candidates: dict[str, Any] = {"original": None, "dequantized": None}
    for name, dequantizer in strategies.items():
        out = work / name
        sums = merge.write_weights(base, out, change, dequantizer, kept)
        merged_folder.write_rest(base, adapter, out)
        measured = certificate.in_fresh_process(certificate.measure, out, sums, adapter, pad, hand_over, forks=forks)
        candidates[name] = measured
        values = "  ".join(f"{key} {value:.5f}" for key, value in flat(measured).items())
        cli.say(f"in bfloat16: {values}" if full else f"onto {name} weights: {values}")
    best = min(strategies, key=lambda name: candidates[name]["kl_mean"])
    for file in (work / best).iterdir():
        file.rename(work / file.name)
    for name in (*strategies, hand_over.name):
        shutil.rmtree(work / name)
    return {
        "candidates": candidates,
        "trained": {key: trained[key] for key in ("eval_loss", "reference_gap")},
        "rows": trained["rows"],
        "positions": trained["positions"],
        "strategy": best,
        **verdict(settings, candidates[best]),
    }


def flat(measured: dict[str, Any]) -> dict[str, float]:
    """What was measured of a merge, without the figures of single kinds of places."""
    return {key: value for key, value in measured.items() if not isinstance(value, dict)}


def verdict(settings: Settings, measured: dict[str, float]) -> dict[str, Any]:
    """Whether a merge is close enough to the trained model to be published."""
    bound = settings.merge.max_kl
    return {"bound": bound, "passed": measured["kl_mean"] <= bound}


def refuse(report: dict[str, Any], settings: Settings, adapter: Path, failed: Path) -> NoReturn:
    """End the stage with only a report of why nothing ships, and with what else can be done."""
    best, bound = report["candidates"][report["strategy"]]["kl_mean"], report["bound"]
    how = "the only merge asked for, onto" if settings.merge.strategy != "auto" else "the best merge, onto"
    reason = (
        f"{how} the {report['strategy']} weights, is {best:.4f} nats from the trained model, "
        f"more than --merge.max_kl {bound}"
    )
    ways = []
    if settings.method == "qlora" and settings.merge.strategy == "original":
        ways.append("leave the choice to --merge.strategy auto")
    if settings.method != "full":
        route = serving_route.inspect(adapter, settings.model.folder)
        no_adapter = f"vLLM serves this adapter merged only, as {route.reason}"
        ways.append(f"serve the adapter ({commands.make('serve-lora')})" if route.mode == "lora" else no_adapter)
    report |= {"reason": reason}
    failed.mkdir(exist_ok=True)
    atomic.write_json(failed / filenames.MERGE_REPORT, report)
    raise UserError(f"{reason}: nothing ships; {', '.join([*ways, f'see {paths.label(failed)}/merge_report.json'])}")


def write_merged(stage: Stage, settings: Settings, adapter: Path) -> None:
    """Write outputs/<run>/merged/, or nothing but merged.failed/merge_report.json."""
    failed, full = stage.folder.with_name(filenames.MERGED_FAILED), settings.method == "full"
    with stage.writing() as work:
        report = merge_candidates(settings, adapter, work)
        shipped = report["candidates"][report["strategy"]]
        stage.metrics = flat(shipped)
        if not report["passed"]:
            refuse(report, settings, adapter, failed)
        atomic.write_json(work / filenames.MERGE_REPORT, report)
    shutil.rmtree(failed, ignore_errors=True)
    how = "all weights in bfloat16" if full else f"merged onto the {report['strategy']} weights"
    kl = stage.metrics["kl_mean"]
    recorded = atomic.read_json(adapter / filenames.REFERENCE)
    if note := gate_foresight.of_merge(recorded, report, settings.serve.max_kl, settings.serve.max_logprob_gap):
        cli.say(f"note: {note}")
    cli.say(f"{paths.label(stage.folder)} is complete: {how}, mean KL to the trained model {kl:.5f} nats")


def write_base(stage: Stage, settings: Settings, adapter: Path) -> None:
    """Write outputs/<run>/base/: the base with the weights that the adapter was trained on."""
    from lockstep.merging import certificate, merge, merged_folder, safetensors_stream
    from lockstep.merging.dequantizer import Dequantizer
    from lockstep.model import adapter_delta

    with stage.writing() as work:
        dequantizer = Dequantizer(adapter, settings.quantization)
        sums = merge.write_weights(settings.model.folder, work, adapter_delta.AdapterDelta(), dequantizer)
        certificate.in_fresh_process(safetensors_stream.verify, work, sums)
        merged_folder.write_rest(settings.model.folder, adapter, work)
    cli.say(f"{paths.label(stage.folder)} is complete: {len(dequantizer.hashes)} tensors as the adapter saw them")


def take_in(settings: Settings, force: bool) -> None:
    """Make outputs/<run>/adapter/ from a folder that PEFT wrote, where it is not there yet."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lockstep.merging import certificate, external_adapter
    from lockstep.model import inspection

    folder = paths.data_file(settings.adapter.path or "")
    files = external_adapter.files_of(folder)
    inputs = [settings.model.folder, settings.run_dir / filenames.DATA, *files]
    sections = settings.sections("model", "data", "method", "quantization", "adapter")
    stage = Stage(
        "train", settings.run_dir / filenames.ADAPTER, sections, inputs, force, config_file=settings.config_file
    )
    stage.origin = "external"
    if earlier := stage.finished():
        return cli.say(f"{paths.label(stage.folder)} is up to date ({manifest.short(earlier.digest)})")
    manifest.check_seal(folder)
    inspection.check_adapter(files, settings.model.folder)
    if note := external_adapter.check(settings, folder):
        cli.say(f"note: {note}")
    with stage.writing() as work:
        stage.metrics = certificate.in_fresh_process(external_adapter.take_in, settings, folder, work)
    cli.say(f"{paths.label(stage.folder)} is complete: taken in from {paths.label(folder)}")


def main() -> None:
    parser = cli.parser(__doc__ or "", "method", "adapter", "merge")
    cli.stage_options(parser)
    parser.add_argument("--base", action="store_true", help="write the dequantized base for serving the adapter")
    options = parser.parse_args()
    settings = cli.settings_from(options)
    run_dir = settings.run_dir
    folder = run_dir / ("base" if options.base else "merged")
    if options.check:
        # whoever serves or measures the merged model compares it with the adapter's record
        sys.exit(user_files.check_exit_code(settings, "merge", folder, run_dir / filenames.ADAPTER))
    user_files.check_paths(settings, "merge")

    # --- inputs ---
    commands.then(*(["serve-lora"] if options.base else ["serve", "evaluate"]))
    if settings.adapter.path:
        trained, _ = lineage.require(settings, run_dir / filenames.DATA, "data")
        manifest.require(settings.model.folder, "download")
        if settings.method == "full":
            raise UserError("--adapter.path brings an adapter, and --method full has none: choose qlora or lora")
        take_in(trained, options.force)
    settings, _ = lineage.require(settings, run_dir / filenames.ADAPTER, "train")
    if newer := lineage.newer_rows(run_dir):
        cli.say(f"note: {newer}")
    inputs = [run_dir / filenames.ADAPTER]
    if settings.method != "full":
        manifest.require(settings.model.folder, "download")
        inputs.insert(0, settings.model.folder)
    if options.base and settings.method != "qlora":
        why = "there is no adapter" if settings.method == "full" else "the adapter was trained on the base as it is"
        return cli.say(f"{why}: no other base is needed")
    if options.base:
        name, sections = "base", settings.sections("model", "quantization")
    else:
        # no require(): new rows in the user's file make the data stage stale, not this adapter
        name, sections = "merge", settings.sections("model", "data", "method", "lora", "quantization", "merge")
        inputs.append(run_dir / filenames.DATA)
    stage = Stage(name, folder, sections, inputs, options.force, config_file=settings.config_file)
    if earlier := stage.finished():
        disk_check.require(settings, folder)  # that nobody changed it since does not say that it was right
        return cli.say(f"{paths.label(folder)} is up to date ({manifest.short(earlier.digest)})")

    # --- work, save, manifest last ---
    os.environ["HF_HUB_OFFLINE"] = "1"
    (write_base if options.base else write_merged)(stage, settings, run_dir / filenames.ADAPTER)
    disk_check.remember_written(settings, folder)


if __name__ == "__main__":
    cli.run(main)
