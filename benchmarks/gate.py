"""How small a fault the gate sees: corruptions of a finished run, how far each really is, and what catches it.

Run     .venv/bin/python benchmarks/gate.py --config configs/demo.yaml        all rungs, 200 clean runs
        .venv/bin/python benchmarks/gate.py --config configs/demo.yaml --only "scale 0.9" --clean 0
        .venv/bin/python benchmarks/gate.py --config configs/demo.yaml --without-server --json FILE
        .venv/bin/python benchmarks/gate.py --list

Needs a finished run (`make demo`), after QLoRA with its base/ (03_merge_lora.py --base). It is copied to
outputs/<run>/bench/gate/, and only there is written. Every rung spoils a copy of the run, with all manifests made
right, as another tool or a hand would leave it, in each mode that it can be served in. Then

  true_kl  KL(trained ‖ spoilt) in nats a token, by transformers in float32 over the whole vocabulary: on held-out rows,
           on tokens drawn from the whole vocabulary, far into a long row, and after chats, which are rendered by the
           spoilt tokenizer and template
  disk     what serve_vllm.sh says before it starts vLLM
  live     what the live gate says by itself, of a server that was started past the checks on disk: wrong weights can
           come into being in an engine, too. A server that runs takes a rung's weights or adapter where it can, and
           answers the proofs that look at weights; for other files each rung is a start of its own and the whole gate

What is finished is kept in a line of its own, and an interrupted climb goes on; --again drops parts of lines. A rung
that changes texts, prompts, ends or sampling is a fault whatever its divergence. The exit code is 0 where no rung above
0.01 nats passes, the live gate refuses none below 0.001 (the check on disk refuses every other file, as it should), the
right model is never refused, and at least 90 % of the refusals name the fault.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ladder import table

ROOT = Path(__file__).resolve().parents[1]
ABOVE, BELOW, NAMED = 0.01, 0.001, 0.9
CLEAN_RUNS = 200
PLACES = """
from lockstep.settings import cli
def main():
    settings = cli.settings_from(cli.parser("").parse_args())
    print(settings.run_dir, settings.model.folder, sep="\\n")
cli.run(main)
"""
LIST = """
from ladder import climb
for rung, mode in climb.listed():
    print(f"{mode:6} {rung.name}")
"""

Line = dict[str, Any]


def environment(home: Path | None = None) -> dict[str, str]:
    """For programs that use the project's modules, with another home perhaps."""
    paths = os.pathsep.join([str(ROOT / "scripts"), str(ROOT / "benchmarks")])
    return os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"} | ({"LOCKSTEP_HOME": str(home)} if home else {})


def copied(words: list[str], folder: Path | None) -> tuple[Path, Path, Path]:
    """(home of the climb, the run in it, its base model), copied there where they are not yet."""
    answer = subprocess.run(
        [sys.executable, "-c", PLACES, *words], env=environment(), capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise SystemExit(answer.stderr.strip()[-2000:])
    run, model = map(Path, answer.stdout.split())
    if not (run / "merged").exists():
        raise SystemExit(f"{run} is not finished: run `make demo`, or the stages up to `make merge`")
    record = run / "adapter/base_tensors.json"
    if not (run / "base").exists() and json.loads(record.read_text(encoding="utf-8"))["dequantized"]:
        raise SystemExit(f"{run}/base is missing, the NF4 weights: run scripts/03_merge_lora.py --base, config as here")
    home = folder or run / "bench/gate"
    there, base = home / "outputs" / run.name, home / "models" / model.name
    if not there.exists():
        shutil.copytree(model, base, dirs_exist_ok=True)
        work = there.with_name(f".{run.name}")
        for part in ("data", "adapter", "merged", "base", "checkpoints"):
            if (run / part).exists():
                shutil.copytree(run / part, work / part, ignore=shutil.ignore_patterns("optimizer.pt"))
        work.rename(there)
    return home, there, base


def job(options: argparse.Namespace, words: list[str]) -> None:
    """The climb itself, in a process whose home is the copy's."""
    from ladder import climb
    from ladder.runs import Run

    from lockstep.settings import cli

    def work() -> None:
        run, model = map(Path, options.job)
        ladder = climb.Ladder(Run(run, model), words, run.parents[1] / "lines", lambda text: print(text, flush=True))
        chosen = [(rung, mode) for rung, mode in climb.listed() if wanted(options, rung.name, mode)]
        if options.only:
            chosen.sort(key=lambda pair: options.only.index(pair[0].name))
        for rung, mode in chosen:
            if options.again:
                line = ladder.line(rung, mode)
                for part in options.again.split(","):
                    line.pop(part, None)
                ladder.keep(rung, line)
        ladder.climb(chosen, not options.without_server)
        if not options.without_server:
            for mode in options.modes.split(","):
                ladder.clean_runs(options.clean // len(options.modes.split(",")), mode)

    cli.run(work)


def wanted(options: argparse.Namespace, name: str, mode: str) -> bool:
    return mode in options.modes.split(",") and (not options.only or name in options.only)


def summary(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the lines say, and whether that is good enough."""
    known = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    lines = [finished(line) for line in known if "true_kl" in line and line.keys() & {"disk", "live"}]
    lines = [line for line in lines if wanted(options, line["name"], line["mode"])]
    clean = [
        json.loads(text) for file in sorted(folder.glob("clean.*.jsonl")) for text in file.read_text().splitlines()
    ]
    faults = [line for line in lines if not line["is_right"]]
    caught = [line for line in faults if line["caught"]]
    live = [line for line in faults if line["live"] and line["live"]["caught"]]
    refused = [line for line in faults if line["largest_kl"] < BELOW and not line["beyond"]]
    right = [line for line in lines if line["is_right"]]
    return {
        "corruptions": lines,
        "missed_above_0.01": named(line for line in faults if is_fault(line) and line["live"] and not line["caught"]),
        "missed_above_0.01_live_alone": named(
            line for line in faults if is_fault(line) and line["live"] and not line["live"]["caught"]
        ),
        "refused_below_0.001": named(line for line in refused if line["live"] and line["live"]["caught"])
        + named(line for line in right if line["caught"]),
        "clean_runs": len(clean),
        "clean_refused": sum(not run["passed"] for run in clean),
        "named_share": share(line["named_rightly"] for line in caught),
        "named_share_live_alone": share(line["live"]["named_rightly"] for line in live),
        "gate_seconds": {
            line["mode"]: line["live"]["seconds"] for line in right if line["live"] and line["name"] == "as trained"
        },
        "cores": os.cpu_count(),
    }


def unfinished(lines: list[Line], options: argparse.Namespace) -> list[str]:
    """The rungs that lack a part of their line."""
    shown = subprocess.run([sys.executable, "-c", LIST], env=environment(), capture_output=True, text=True, check=True)
    parts = ("disk",) if options.without_server else ("disk", "live")
    whole = {(line["mode"], line["name"]) for line in lines if all(line[part] for part in parts)}
    rungs = [tuple(line.split(maxsplit=1)) for line in shown.stdout.splitlines()]
    return [f"{name} ({mode})" for mode, name in rungs if wanted(options, name, mode) and (mode, name) not in whole]


def finished(line: Line) -> Line:
    """A line with what a user meets: the check on disk first, and the live gate after it."""
    disk, live = line.get("disk"), line.get("live")
    first = disk if disk and (disk["caught"] or not live) else live
    assert first
    met = {key: first[key] for key in ("caught", "by", "reason", "named", "named_rightly")}
    return line | met | {"disk": disk, "live": live, "largest_kl": max(line["true_kl"].values())}


def is_fault(line: Line) -> bool:
    return bool(line["largest_kl"] > ABOVE or line["beyond"])


def named(lines: Any) -> list[str]:
    return [f"{line['name']} ({line['mode']})" for line in lines]


def share(values: Any) -> float | None:
    known = [bool(value) for value in values]
    return sum(known) / len(known) if known else None


def report(result: dict[str, Any]) -> bool:
    """The table, and whether the goals hold."""
    print(f"\nKL(trained ‖ spoilt) in nats a token\n{table.HEADER}")
    for line in result["corruptions"]:
        print(table.row(line))
    print()
    for key, value in result.items():
        if key != "corruptions":
            print(f"{key}: {value}")
    return (
        not result["missed_above_0.01"]
        and not result["refused_below_0.001"]
        and not result["clean_refused"]
        and (result["named_share"] is None or result["named_share"] >= NAMED)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other arguments are settings, as for scripts/serve_vllm.sh.",
    )
    parser.add_argument("--modes", default="merged,lora", help="[merged,lora]")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="of a rung; repeatable")
    parser.add_argument("--list", action="store_true", help="name the rungs and stop")
    parser.add_argument("--clean", type=int, default=CLEAN_RUNS, help=f"runs on the right model [{CLEAN_RUNS}]")
    parser.add_argument("--without-server", action="store_true", help="true_kl and disk only: minutes, no vLLM")
    parser.add_argument("--again", metavar="PARTS", help="of true_kl,disk,live: measure these anew")
    parser.add_argument("--folder", type=Path, help="home of the copy [outputs/<run>/bench/gate]; needs 2 GB")
    parser.add_argument("--report", action="store_true", help="show what is known; measure nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=2, metavar=("RUN", "MODEL"), help=argparse.SUPPRESS)
    options, words = parser.parse_known_args()
    if options.job:
        return job(options, words)
    if options.list:
        sys.exit(subprocess.run([sys.executable, "-c", LIST], env=environment(), check=False).returncode)
    home, run, model = copied(words, options.folder)
    started = time.monotonic()
    code = 0
    if not options.report:
        command = [sys.executable, __file__, "--job", str(run), str(model), *sys.argv[1:]]
        code = subprocess.run(command, env=environment(home), check=False).returncode
    result = summary(home / "lines", options) | {"seconds": round(time.monotonic() - started)}
    result["unfinished"] = unfinished(result["corruptions"], options)
    holds = report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(code or (0 if holds else 1))


if __name__ == "__main__":
    main()
