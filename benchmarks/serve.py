"""How fast a run is served: output tokens/s, TTFT, ITL and latency under load, merged and as base + adapter.

Run     make bench
        .venv/bin/python benchmarks/serve.py --config configs/demo.yaml
        .venv/bin/python benchmarks/serve.py --config configs/demo.yaml --modes merged --concurrency 1,16 \\
            --flags "--serve.enforce_eager false" --flags "--serve.max_num_seqs 16" --json FILE
        .venv/bin/python benchmarks/serve.py --report outputs/demo/bench/bench.json

Writes outputs/<run>/bench/bench.json and bench.png. For each mode and each set of flags (the config's own
settings first), the server is started as a user does, and vLLM's own `bench serve` puts it under load: the
run's own test questions, answers of a fixed length (the end token is ignored), greedy, fixed seeds, one
warm-up, and at each concurrency up to eight requests per client. Questions repeat where there are fewer, and
vLLM's prefix cache is on, as in use. --report only shows again what was measured.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WITH_PACKAGE = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}  # for programs that use the project's modules
# Our figure → its name in the result of vLLM's benchmark.
FIGURES = {
    "output_tokens_per_second": "output_throughput",
    "ttft_ms_p50": "p50_ttft_ms",
    "ttft_ms_p99": "p99_ttft_ms",
    "itl_ms_p50": "p50_itl_ms",
    "itl_ms_p99": "p99_itl_ms",
    "latency_ms_p50": "p50_e2el_ms",
    "latency_ms_p99": "p99_e2el_ms",
    "requests": "completed",
    "failures": "failed",
    "seconds": "duration",
}
# The `vllm` command of the CPU wheel does not start, so its benchmark is called here.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
RUN_DIR = """
from lockstep.settings import cli
cli.run(lambda: print(cli.settings_from(cli.parser("").parse_args()).run_dir))
"""
# A server as stage 05 starts it: its note as a line of JSON, and its end once standard input is closed.
SERVER = """
import sys
from lockstep.serving import temporary_server
from lockstep.settings import cli
def main():
    mode, *words = sys.argv[1:]
    with temporary_server.served(words, mode, lambda line: None) as note:
        print(note.model_dump_json(), flush=True)
        sys.stdin.read()
cli.run(main)
"""
QUESTIONS = """
import json
from lockstep import paths
from lockstep.data import layouts, readers
from lockstep.settings import cli
def main():
    data = cli.settings_from(cli.parser("").parse_args()).data
    for file in data.test_file or data.validation_file or data.train_file:
        for record in readers.records(paths.data_file(file)):
            row = layouts.parse(record, data)
            if isinstance(row, layouts.Row):
                asked = [message["content"] for message in row.messages if message["role"] == "user"]
                print(json.dumps({"prompt": asked[-1]}))
cli.run(main)
"""


def python(code: str, *words: str) -> str:
    """What a few lines of Python print, with the project's modules at hand."""
    answer = subprocess.run(
        [sys.executable, "-c", code, *words], env=WITH_PACKAGE, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        print(answer.stderr.strip()[-3000:], file=sys.stderr)
        raise SystemExit(answer.returncode)
    return answer.stdout


@contextmanager
def served(mode: str, words: list[str]) -> Iterator[tuple[str, str]]:
    """(model's name, address without /v1) of a server, for as long as the block lasts."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, mode, *words],
        env=WITH_PACKAGE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdin and server.stdout
    try:
        line = server.stdout.readline()
        if not line:
            raise SystemExit(f"the server for mode {mode} did not start with {shlex.join(words)}")
        note = json.loads(line)
        yield note["model"], note["url"].removesuffix("/v1")
    finally:
        server.stdin.close()
        server.wait(timeout=120)


def load(model: str, url: str, tokenizer: Path, questions: Path, concurrency: int, options: argparse.Namespace) -> Any:
    """One measurement: the figures of vLLM's benchmark at a concurrency."""
    count = min(options.requests, 8 * concurrency)
    with tempfile.TemporaryDirectory() as scratch:
        words = {
            "backend": "openai-chat", "endpoint": "/v1/chat/completions", "base-url": url, "model": model,
            "tokenizer": str(tokenizer), "dataset-name": "custom", "dataset-path": str(questions),
            "output-len": str(options.output_tokens), "num-prompts": str(count), "max-concurrency": str(concurrency),
            "num-warmups": "1", "temperature": "0", "seed": str(options.seed), "percentile-metrics": "ttft,itl,e2el",
            "metric-percentiles": "50,99", "result-dir": scratch, "result-filename": "result.json",
        }  # fmt: skip
        flags = ["--skip-chat-template", "--ignore-eos", "--save-result", "--disable-tqdm"]
        environment = {"NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
        if key := os.environ.get("LOCKSTEP_API_KEY"):
            environment["OPENAI_API_KEY"] = key
        command = [sys.executable, "-c", BENCH, *flags]
        for name, value in words.items():
            command += [f"--{name}", value]
        answer = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise SystemExit(f"vLLM's benchmark failed:\n{answer.stderr[-3000:]}")
        result = json.loads((Path(scratch) / "result.json").read_text(encoding="utf-8"))
    return {"concurrency": concurrency} | {ours: result[theirs] for ours, theirs in FIGURES.items()}


def measure(options: argparse.Namespace, settings: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """The measurements one by one: a server for each mode and set of flags, and each number of clients."""
    questions = folder / "questions.jsonl"
    questions.write_text(python(QUESTIONS, *settings), encoding="utf-8")
    for mode in options.modes.split(","):
        tokenizer = folder.parent / ("merged" if mode == "merged" else "adapter")
        for flags in ["", *options.flags]:
            print(f"{mode} {flags or '(as configured)'}: starting the server …", flush=True)
            with served(mode, [*settings, *shlex.split(flags)]) as (model, url):
                for concurrency in map(int, options.concurrency.split(",")):
                    figures = load(model, url, tokenizer, questions, concurrency, options)
                    yield {"mode": mode, "flags": flags, **figures}


HEADER = (
    f"{'mode':7} {'clients':>7} {'requests':>8} {'failed':>6} {'tokens/s':>9} {'TTFT p50':>9} {'p99':>7} "
    f"{'ITL p50':>8} {'p99':>7} {'latency p50':>12} {'p99':>7}  flags"
)


def line_of(row: dict[str, Any]) -> str:
    """A row of the table; times in milliseconds."""
    return (
        f"{row['mode']:7} {row['concurrency']:7} {row['requests']:8} {row['failures']:6} "
        f"{row['output_tokens_per_second']:9.1f} {row['ttft_ms_p50']:9.0f} {row['ttft_ms_p99']:7.0f} "
        f"{row['itl_ms_p50']:8.1f} {row['itl_ms_p99']:7.1f} {row['latency_ms_p50']:12.0f} "
        f"{row['latency_ms_p99']:7.0f}  {row['flags']}"
    )


def best_of(measurements: list[dict[str, Any]]) -> dict[str, Any]:
    """For each mode the flags with the most output tokens/s at any concurrency, of those without failures."""
    best: dict[str, Any] = {}
    for mode in dict.fromkeys(row["mode"] for row in measurements):
        sound = [row for row in measurements if row["mode"] == mode and not row["failures"]]
        if not sound:
            continue
        top = max(sound, key=lambda row: row["output_tokens_per_second"])
        as_configured = [row["output_tokens_per_second"] for row in sound if not row["flags"]]
        gain = top["output_tokens_per_second"] / max(as_configured) if as_configured else None
        best[mode] = {key: top[key] for key in ("flags", "concurrency", "output_tokens_per_second")} | {"ratio": gain}
    return best


def draw(measurements: list[dict[str, Any]], picture: Path) -> None:
    """Throughput, TTFT, ITL and latency over the number of clients: p50 as lines, p99 dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(11, 7), dpi=110, layout="constrained")
    panels = {
        "output_tokens_per_second": "output tokens/s",
        "ttft_ms": "TTFT, ms",
        "itl_ms": "ITL, ms",
        "latency_ms": "end-to-end latency, ms",
    }
    servers = list(dict.fromkeys((row["mode"], row["flags"]) for row in measurements))
    for axes, (key, label) in zip(grid.flat, panels.items(), strict=True):
        for number, (mode, flags) in enumerate(servers):
            points = [row for row in measurements if (row["mode"], row["flags"]) == (mode, flags)]
            clients = [row["concurrency"] for row in points]
            for suffix, style in (("", "o-"),) if key in points[0] else (("_p50", "o-"), ("_p99", "o:")):
                name = f"{mode} {flags}".strip() if suffix != "_p99" else None
                values = [row[key + suffix] for row in points]
                axes.plot(clients, values, style, color=f"C{number}", label=name, markersize=4, linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(count) for count in clients])
        axes.set_xlabel("clients at a time")
        axes.set_ylabel(label + (": p50, p99 dotted" if key != "output_tokens_per_second" else ""))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    grid[0][0].legend()
    figure.savefig(picture, metadata={"Software": None})
    pyplot.close(figure)


def report(result: dict[str, Any], picture: Path) -> None:
    """The table, the best flags and the picture."""
    print(f"\n{result['output_tokens']} tokens an answer, {result['cores']} cores; times in ms\n{HEADER}")
    for row in result["measurements"]:
        print(line_of(row))
    for mode, top in best_of(result["measurements"]).items():
        gain = f", {top['ratio']:.2f} × as configured" if top["ratio"] else ""
        print(
            f"best for {mode}: {top['flags'] or 'as configured'}: {top['output_tokens_per_second']:.1f} "
            f"output tokens/s with {top['concurrency']} clients{gain}"
        )
    draw(result["measurements"], picture)
    print(f"drawn in {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other arguments are settings, as for scripts/serve_vllm.sh.",
    )
    parser.add_argument("--modes", default="merged,lora", help="of merged, lora and base [merged,lora]")
    parser.add_argument(
        "--flags", action="append", default=[], help="settings to try beside the config's own; repeatable"
    )
    parser.add_argument("--concurrency", default="1,4,16,64", help="clients at a time [1,4,16,64]")
    parser.add_argument("--requests", type=int, default=256, help="at most so many at each concurrency [256]")
    parser.add_argument("--output-tokens", type=int, default=64, help="length of every answer [64]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    parser.add_argument("--report", type=Path, metavar="FILE", help="show a bench.json again; measure nothing")
    options, settings = parser.parse_known_args()
    if options.report:
        return report(json.loads(options.report.read_text(encoding="utf-8")), options.report.with_suffix(".png"))

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))  # by way of `served`, which stops the server
    folder = Path(python(RUN_DIR, *settings).strip()) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "settings": settings,
        "output_tokens": options.output_tokens,
        "seed": options.seed,
        "cores": os.cpu_count(),
        "measurements": [],
    }
    for row in measure(options, settings, folder):
        print(line_of(row), flush=True)
        result["measurements"].append(row)
        result["best"] = best_of(result["measurements"])
        for file in (folder / "bench.json", *([options.json] if options.json else [])):  # what is measured is kept
            file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    report(result, folder / "bench.png")


if __name__ == "__main__":
    main()
