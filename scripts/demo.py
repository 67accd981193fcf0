"""The whole pipeline on the embedded model, as `make demo` runs it.

Runs the stages one after the other, as a user would, and prints what the base and the tuned model
answered to the same test questions, side by side.

Writes  outputs/demo/demo.json
Run     make demo          (a second run skips what is done)
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.errors import UserError
from lockstep.settings import cli, yaml_file
from lockstep.settings.tree import Settings
from lockstep.text import json_text
from lockstep.text.unicode import drop_controls

CONFIG = Path("configs/demo.yaml")
STAGES = {
    "download": ("00_download_model.py", "models/smollm2-135m-instruct"),
    "data": ("01_data_collator.py", "outputs/demo/data"),
    "train": ("02_train_qlora.py", "outputs/demo/adapter"),
    "merge": ("03_merge_lora.py", "outputs/demo/merged"),
    "evaluate": ("05_evaluate.py", "outputs/demo/eval"),
}
SIDES = ("base", "tuned")
SHOWN = 8  # questions in the side-by-side table
WIDTH = 150  # characters of an answer in it
# Where the CPU computes in float32, two epochs take up to half an hour. One answers 97 % of the orders exactly.
FLOAT32_EPOCHS = 1.0

Answers = list[dict[str, Any]]  # lines of predictions.jsonl


def run(*words: str) -> None:
    """Show a script's command line and run it; its failure ends the demo."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    inner = os.environ | {"MAKELEVEL": "2"}  # that of a stage after which make goes on by itself
    code = subprocess.run([sys.executable, *words], cwd=paths.ROOT, env=inner, check=False).returncode
    if code:
        raise UserError(f"{words[0]} ended with exit code {code}; run `make demo` again to go on from there")


def training_words(settings: Settings) -> list[str]:
    """What to add to the training's command line: fewer epochs where the CPU has no instructions for bfloat16.

    A finished training keeps the epochs that it had, so that it is up to date.
    """
    adapter, configured = settings.run_dir / filenames.ADAPTER, settings.train.num_train_epochs
    if (adapter / filenames.MANIFEST).exists():
        trained = manifest.read(adapter).config.get("train", {})  # an adapter from elsewhere has no such settings
        epochs = trained.get("num_train_epochs", configured)
    else:
        epochs = FLOAT32_EPOCHS if computes_in_float32(settings) else configured
    if epochs == configured:
        return []
    words = ["--train.num_train_epochs", f"{epochs:g}"]
    cli.say(
        f"\nnote: {epochs:g} epoch of training in place of the {configured:g} of {CONFIG}, because float32 is slow on "
        f'this CPU; by hand, the same training is make train ARGS="{shlex.join(words)}"'
    )
    return words


def computes_in_float32(settings: Settings) -> bool:
    """Whether a training would run on a CPU without instructions for bfloat16."""
    import torch

    from lockstep.model import networks

    device = networks.device()
    return device == "cpu" and networks.compute_dtype(settings.train.dtype, device) == torch.float32


def is_order(row: dict[str, Any]) -> bool:
    """Whether a row belongs to the task whose answers can be checked exactly: orders as JSON."""
    return bool(row["wanted"].startswith("{"))


def exact_match(rows: Answers, side: str) -> float:
    """The share of orders that a model answered exactly as in the test row."""
    orders = [row for row in rows if is_order(row)]
    return [row[side].get("answer") == row["wanted"] for row in orders].count(True) / len(orders)


def stop_rate(rows: Answers, side: str) -> float:
    """The share of answers that ended by themselves."""
    return [row[side].get("finish_reason") for row in rows].count("stop") / len(rows)


def figures(rows: Answers, verdict: dict[str, str], seconds: dict[str, float]) -> dict[str, Any]:
    """demo.json.

    Args:
        rows: of predictions.jsonl.
        verdict: of eval/metrics.json.
        seconds: that each stage took.
    """
    return {
        "rows": len(rows),
        "exact_match": {side: exact_match(rows, side) for side in SIDES},
        "stop_rate": stop_rate(rows, "tuned"),
        "base_stop_rate": stop_rate(rows, "base"),
        "verdict": verdict,
        "seconds": seconds,
    }


def show(rows: Answers) -> None:
    """Print a few questions, each with its reference answer and what both models answered."""
    orders, persona = [row for row in rows if is_order(row)], [row for row in rows if not is_order(row)]
    for row in orders[: SHOWN // 2] + persona[: SHOWN // 2]:
        question = row["messages"][-1]["content"].replace("\n", " ")
        print(f"\n  {question}")
        print(f"    {'reference':9} {shortened(row['wanted'])}")
        for side in SIDES:
            print(f"    {side:9} {shortened(row[side].get('answer'))}")


def shortened(answer: str | None) -> str:
    """An answer on one line of a terminal."""
    if answer is None:
        return "(no answer)"
    line = drop_controls(" ".join(answer.split()))
    return line[:WIDTH] + ("…" if len(line) > WIDTH else "")


def run_stages(settings: Settings) -> dict[str, float]:
    """Stage → seconds that it took, now or when it was run."""
    seconds = {}
    for stage, (script, folder) in STAGES.items():
        output = paths.HOME / folder
        finished_before = manifest.looks_complete(output)
        more = training_words(settings) if stage == "train" else []
        started = time.monotonic()
        run(f"scripts/{script}", "--config", str(CONFIG), *more)
        elapsed = time.monotonic() - started
        seconds[stage] = round(manifest.read(output).seconds if finished_before else elapsed, 1)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.language_option(parser)
    parser.parse_args()
    settings = yaml_file.load(paths.ROOT / CONFIG, {})
    run("data/build_toy_dataset.py")
    seconds = run_stages(settings)

    evaluation = settings.run_dir / filenames.EVALUATION
    rows = [row for _, row in json_text.json_lines(evaluation / filenames.PREDICTIONS)]
    result = figures(rows, atomic.read_json(evaluation / filenames.METRICS)["verdict"], seconds)
    summary = settings.run_dir / filenames.DEMO
    atomic.write_json(summary, result)
    show(rows)
    cli.say(f"\n{len(rows)} held-out questions, greedy, the same server settings and template for both models")
    match = result["exact_match"]
    cli.say(f"  orders answered exactly      base {match['base']:6.1%}   tuned {match['tuned']:6.1%}")
    cli.say(f"  answers that end themselves  base {result['base_stop_rate']:6.1%}   tuned {result['stop_rate']:6.1%}")
    print("  seconds  " + "  ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()))
    cli.say(
        f"{paths.label(summary)} is written, and the report {paths.label(evaluation)}/{filenames.REPORT}. "
        f"Now try `make serve`, and in a second terminal `make client`, `make curl` or `make chat`."
    )


if __name__ == "__main__":
    cli.run(main)
