"""The whole pipeline on the embedded model, as `make demo` runs it.

Runs the stages one after the other as anyone would, and prints what base and tuned model answered to
the same test questions, side by side.

Writes  outputs/demo/demo.json
Run     make demo          (a second run skips what is done)
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
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
SHOWN = 8  # questions in the side-by-side table

Answers = list[dict[str, Any]]


def run(*words: str) -> None:
    """Run a script of this project, after showing the line; its failure ends the demo."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words], cwd=paths.ROOT, check=False).returncode
    if code:
        raise UserError(f"{words[0]} ended with exit code {code}; run `make demo` again to go on from there")


def is_order(row: dict[str, Any]) -> bool:
    """Whether a row is of the task whose answers can be checked exactly."""
    return bool(row["wanted"].startswith("{"))


def exact_match(rows: Answers, side: str) -> float:
    orders = [row for row in rows if is_order(row)]
    return [row[side].get("answer") == row["wanted"] for row in orders].count(True) / len(orders)


def stop_rate(rows: Answers, side: str) -> float:
    """The share of answers that ended by themselves."""
    return [row[side].get("finish_reason") for row in rows].count("stop") / len(rows)


def show(rows: Answers) -> None:
    """The same questions, the answer that was wanted, and what both models said."""
    orders, persona = [row for row in rows if is_order(row)], [row for row in rows if not is_order(row)]
    for row in orders[: SHOWN // 2] + persona[: SHOWN // 2]:
        question = row["messages"][-1]["content"].replace("\n", " ")
        print(f"\n  {question}")
        for name, text in (("wanted", row["wanted"]), *((side, row[side].get("answer")) for side in ("base", "tuned"))):
            line = drop_controls(" ".join(str(text).split()))
            print(f"    {name:6} {line[:150]}{'…' if len(line) > 150 else ''}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    settings = yaml_file.load(paths.ROOT / CONFIG, {})
    run_dir, seconds = settings.run_dir, {}
    run("data/build_toy_dataset.py")
    for stage, (script, folder) in STAGES.items():
        there = manifest.looks_complete(paths.HOME / folder)
        started = time.monotonic()
        run(f"scripts/{script}", "--config", str(CONFIG))
        took = time.monotonic() - started
        seconds[stage] = round(manifest.read(paths.HOME / folder).seconds if there else took, 1)

    rows = [row for _, row in json_text.json_lines(run_dir / filenames.EVALUATION / filenames.PREDICTIONS)]
    metrics = atomic.read_json(run_dir / filenames.EVALUATION / filenames.METRICS)
    match = {side: exact_match(rows, side) for side in ("base", "tuned")}
    stops = {side: stop_rate(rows, side) for side in ("base", "tuned")}
    result = {
        "rows": len(rows),
        "exact_match": match,
        "stop_rate": stops["tuned"],
        "base_stop_rate": stops["base"],
        "verdict": metrics["verdict"],
        "seconds": seconds,
    }
    summary = run_dir / filenames.DEMO
    atomic.write_json(summary, result)
    show(rows)
    print(f"\n{len(rows)} held-out questions, greedy, the same server settings and template for both models")
    print(f"  orders answered exactly      base {match['base']:6.1%}   tuned {match['tuned']:6.1%}")
    print(f"  answers that end themselves  base {stops['base']:6.1%}   tuned {stops['tuned']:6.1%}")
    print("  seconds  " + "  ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()))
    print(
        f"{paths.label(summary)} is written, and the report {paths.label(run_dir)}/eval/report.html. "
        f"Now try `make serve`, and in a second terminal `make client`, `make curl` or `make chat`."
    )


if __name__ == "__main__":
    cli.run(main)
