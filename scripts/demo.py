"""The whole pipeline on the embedded model, as `make demo` runs it.

Runs the stages one after the other as anyone would, asks base and tuned model the same test
questions through the same server, and prints the answers side by side.

Writes  outputs/demo/demo.json, outputs/demo/answers/{base,tuned}.jsonl
Run     make demo          (a second run skips what is done)
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lockstep import cli, configfile, manifest, paths, records
from lockstep.errors import UserError

CONFIG = Path("configs/demo.yaml")
SCRIPTS = Path(__file__).resolve().parent
STAGES = {
    "download": ("00_download_model.py", "models/smollm2-135m-instruct"),
    "data": ("01_data_collator.py", "outputs/demo/data"),
    "train": ("02_train_qlora.py", "outputs/demo/adapter"),
    "merge": ("03_merge_lora.py", "outputs/demo/merged"),
}
# Greedy, and nothing that could bend an answer: this compares models, not samplers.
GREEDY = "--sampling.temperature 0 --sampling.top_p 1 --sampling.top_k -1 --sampling.repetition_penalty 1"
LONGEST = "--sampling.max_tokens 96"
SHOWN = 8  # questions in the side-by-side table

Answers = list[dict[str, Any]]


def run(*words: str) -> None:
    """Run a script of this project, after showing the line; its failure ends the demo."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words], cwd=paths.ROOT, check=False).returncode
    if code:
        raise UserError(f"{words[0]} ended with exit code {code}; run `make demo` again to go on from there")


@contextmanager
def served(mode: str, port: int) -> Iterator[None]:
    """A server of the run, for as long as the block lasts."""
    command = ["scripts/serve_vllm.sh", "--config", str(CONFIG), "--serve.mode", mode, "--serve.port", str(port)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    environment = os.environ | {"PYTHON": sys.executable}
    server = subprocess.Popen(command, cwd=paths.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        if not any(line.startswith("serving ") for line in server.stdout):
            raise UserError(f"the server for {mode} did not start; outputs/demo/serve/server.log says why")
        yield
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(mode: str, output: Path, questions: str) -> float:
    """Answers of one model to all test questions; returns the seconds from start to stop."""
    started = time.monotonic()
    port = free_port()
    with served(mode, port):
        run(
            "scripts/04_client_openai.py", "--config", str(CONFIG), "--serve.port", str(port), "--batch", questions,
            "--output", str(output), "--force", *GREEDY.split(), *LONGEST.split(),
        )  # fmt: skip
    return round(time.monotonic() - started, 1)


def read(file: Path) -> Answers:
    return [record for _, record in records.json_lines(file)]


def is_order(record: dict[str, Any]) -> bool:
    """Whether a row is of the task whose answers can be checked exactly."""
    return bool(record["reference"].startswith("{"))


def exact_match(answers: Answers) -> float:
    orders = [record for record in answers if is_order(record)]
    return [record.get("answer") == record["reference"] for record in orders].count(True) / len(orders)


def stop_rate(answers: Answers) -> float:
    """The share of answers that ended by themselves."""
    return [record.get("finish_reason") for record in answers].count("stop") / len(answers)


def show(base: Answers, tuned: Answers) -> None:
    """The same questions, the answer that was wanted, and what both models said."""
    orders = [pair for pair in zip(base, tuned, strict=True) if is_order(pair[0])]
    persona = [pair for pair in zip(base, tuned, strict=True) if not is_order(pair[0])]
    for before, after in orders[: SHOWN // 2] + persona[: SHOWN // 2]:
        question = before["messages"][-1]["content"].replace("\n", " ")
        print(f"\n  {question}")
        for name, text in (
            ("wanted", before["reference"]),
            ("base", before.get("answer")),
            ("tuned", after.get("answer")),
        ):
            line = " ".join(str(text).split())
            print(f"    {name:6} {line[:150]}{'…' if len(line) > 150 else ''}")


def main() -> None:
    settings = configfile.load(paths.ROOT / CONFIG, {})
    run_dir, seconds = settings.run_dir, {}
    (questions,) = settings.data.test_file
    run("data/build_toy_dataset.py")
    for stage, (script, folder) in STAGES.items():
        there = manifest.looks_complete(paths.HOME / folder)
        started = time.monotonic()
        run(f"scripts/{script}", "--config", str(CONFIG))
        took = time.monotonic() - started
        record = manifest.read(paths.HOME / folder)
        seconds[stage] = round(record.seconds if there else took, 1)

    summary = run_dir / "demo.json"
    files = {"base": run_dir / "answers" / "base.jsonl", "tuned": run_dir / "answers" / "tuned.jsonl"}
    tuned_model = record.digest
    done = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    if done.get("model") == tuned_model and all(file.exists() for file in files.values()):
        seconds = done["seconds"]
    else:
        seconds["base_answers"] = ask("base", files["base"], questions)
        seconds["tuned_answers"] = ask("merged", files["tuned"], questions)

    base, tuned = read(files["base"]), read(files["tuned"])
    match = {"base": exact_match(base), "tuned": exact_match(tuned)}
    result = {
        "model": tuned_model,
        "rows": len(tuned),
        "exact_match": match,
        "stop_rate": stop_rate(tuned),
        "base_stop_rate": stop_rate(base),
        "seconds": seconds,
    }
    manifest.write_json(summary, result)
    show(base, tuned)
    print(f"\n{len(tuned)} held-out questions, greedy, the same server and template for both models")
    print(f"  orders answered exactly      base {match['base']:6.1%}   tuned {match['tuned']:6.1%}")
    print(f"  answers that end themselves  base {stop_rate(base):6.1%}   tuned {stop_rate(tuned):6.1%}")
    print("  seconds  " + "  ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()))
    print(
        f"{paths.label(summary)} is written. Now try `make serve`, and in a second terminal `make client` or `make curl`."
    )


if __name__ == "__main__":
    cli.run(main)
