"""How fast stage 01 is, and how much memory it takes, beside TRL's own preparation of the same rows.

Run     .venv/bin/python benchmarks/data.py                     52,000 rows, three rounds
        .venv/bin/python benchmarks/data.py --scale 10          then ten times the rows, once
        .venv/bin/python benchmarks/data.py --data FILE --tokenizer FOLDER --rows N --rounds N --json FILE

Each round runs, one after the other and each in a process of its own, start-up included:
  stage 01        parse, render, tokenize, write; its report without the search for near duplicates
  with search     the same with that search, as it is by default
  TRL             load_dataset("json"), and what SFTTrainer does to such rows before it trains (2 processes)
The rows are made of the instructions in FILE (Alpaca fields): answers are recombined, so that all differ.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TRL = """
import sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
file, model, out = sys.argv[1:]
def pair(row):
    question = row["instruction"] + ("\\n" + row["input"] if row["input"] else "")
    return {"prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": row["output"]}]}
rows = load_dataset("json", data_files=file, split="train", cache_dir=out)
rows = rows.map(pair, remove_columns=rows.column_names, num_proc=2)
config = SFTConfig(output_dir=out, max_length=1024, report_to="none", use_cpu=True, bf16=False, dataset_num_proc=2)
network = AutoModelForCausalLM.from_pretrained(model)
trainer = SFTTrainer(network, args=config, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(model))
print(len(trainer.train_dataset))
"""
SEARCH = """
import json, sys, time
from lockstep.data import layouts, near_duplicates, readers
from lockstep.settings.schema import Data
from pathlib import Path
texts = [layouts.parse(record, Data()).dialogue for record in readers.records(Path(sys.argv[1]))]
start, signatures = time.perf_counter(), near_duplicates.Signatures()
for text in texts:
    signatures.add(text)
groups = signatures.clusters(0.8)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "bytes_per_row": signatures.nbytes / len(texts), "groups": len(groups)}))
"""

Figures = dict[str, dict[str, list[float]]]  # job → seconds and peak_bytes → of each round


def write_rows(source: Path, count: int, out: Path) -> Path:
    """`count` different Alpaca rows: each answer is the beginning of one and the end of another."""
    if source.suffix == ".json":
        rows = json.loads(source.read_text(encoding="utf-8"))
    else:
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    chance = random.Random(1)
    with out.open("w", encoding="utf-8") as stream:
        for number in range(count):
            row = rows[number % len(rows)]
            words, other = row["output"].split(), chance.choice(rows)["output"].split()
            cut = chance.randrange(max(1, len(words)))
            answer = " ".join(words[:cut] + other[: max(3, len(words) - cut)])
            new = {"instruction": f"{row['instruction']} ({number})", "input": row["input"], "output": answer}
            stream.write(json.dumps(new, ensure_ascii=False) + "\n")
    return out


def make_model(tokenizer: Path, out: Path) -> None:
    """A random model of one small layer with the tokenizer: stage 01 and TRL need a model's folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=len(loaded),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    loaded.save_pretrained(out)


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, int, str]:
    """Seconds, peak resident bytes of the process itself, and what it printed last."""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - start
        if status:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)[:200]} failed:\n{errors.read()[-2000:]}")
    return took, usage.ru_maxrss * 1024, (output.strip().splitlines() or [""])[-1]


def measure_rounds(jobs: dict[str, list[str]], rounds: int, home: Path, environment: dict[str, str]) -> Figures:
    """Seconds and peak bytes of each job, round by round; every round has caches of its own."""
    figures: Figures = {name: {"seconds": [], "peak_bytes": []} for name in jobs}
    for number in range(rounds):
        cache = {"HF_DATASETS_CACHE": f"{home}/cache{number}"}
        for name, command in jobs.items():
            output = [f"{home}/trl{number}"] if name == "TRL" else []
            seconds, peak, _ = measured(command + output, environment | cache)
            figures[name]["seconds"].append(seconds)
            figures[name]["peak_bytes"].append(peak)
    return figures


def summary(figures: Figures, search: dict[str, float]) -> dict[str, Any]:
    """Medians, and the two ratios that count."""
    seconds = {name: statistics.median(values["seconds"]) for name, values in figures.items()}
    peaks = {name: statistics.median(values["peak_bytes"]) for name, values in figures.items()}
    return {
        "seconds": seconds["stage 01"],
        "peak_bytes": peaks["stage 01"],
        "seconds_with_search": seconds["with search"],
        "peak_bytes_with_search": peaks["with search"],
        "search": search,
        "ratio": seconds["TRL"] / seconds["stage 01"],
        "memory_ratio": peaks["stage 01"] / peaks["TRL"],
    }


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.1f} [{min(values):.1f}–{max(values):.1f}]"


def show(options: argparse.Namespace, figures: Figures, result: dict[str, Any]) -> None:
    """The table."""
    cores = os.cpu_count()
    print(f"{options.rows:,} rows of {options.data.name}, {options.tokenizer.name} tokenizer, {cores} cores")
    print(f"{'':14}{'seconds, median [range]':>28}{'peak MB':>10}")
    for name, values in figures.items():
        peak = statistics.median(values["peak_bytes"]) / 1e6
        print(f"{name:14}{spread(values['seconds']):>28}{peak:10.0f}")
    print(f"TRL's time over ours {result['ratio']:.2f}, our peak over TRL's {result['memory_ratio']:.2f}")
    search = result["search"]
    print(f"search for near duplicates alone: {search['seconds']:.1f} s, {search['bytes_per_row']:.0f} bytes a row")


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        make_model(options.tokenizer, home / "model")
        file = write_rows(options.data, options.rows, home / "rows.jsonl")
        words = ["--model.source", "local", "--model.path", str(home / "model"), "--model.name", "m"]
        environment = {"LOCKSTEP_HOME": scratch, "HF_HUB_OFFLINE": "1", "HF_HOME": f"{scratch}/hf"}
        measured([sys.executable, str(ROOT / "scripts/00_download_model.py"), *words], environment)
        stage = [sys.executable, str(ROOT / "scripts/01_data_collator.py"), *words, "--force", "--data.train_file"]
        without = ["--data.near_duplicate_similarity", "null"]
        jobs = {
            "stage 01": [*stage, str(file), *without],
            "with search": [*stage, str(file)],
            "TRL": [sys.executable, "-c", TRL, str(file), str(home / "model")],
        }
        figures = measure_rounds(jobs, options.rounds, home, environment)
        search_command = [sys.executable, "-c", SEARCH, str(file)]
        _, _, last_line = measured(search_command, environment | {"PYTHONPATH": str(ROOT / "scripts")})
        result = {"rows": options.rows} | summary(figures, json.loads(last_line))
        show(options, figures, result)
        if options.scale > 1:
            large = write_rows(options.data, options.rows * options.scale, home / "large.jsonl")
            took, peak, _ = measured([*stage, str(large), *without], environment)
            result |= {"scale": options.scale, "scaled_seconds": took, "scaled_peak_bytes": peak}
            print(f"{options.scale} × the rows: {took:.1f} s ({took / result['seconds']:.1f} ×), {peak / 1e6:.0f} MB")
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    shared, toy = SHARED / "data/alpaca_en_1k.json", ROOT / "data/toy/train.jsonl"
    smol = ROOT / "models/smollm2-135m-instruct"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared if shared.exists() else toy)
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizers/qwen3" if shared.exists() else smol)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="stage 01 once more on so many times the rows")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
