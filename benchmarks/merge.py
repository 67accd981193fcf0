"""How fast the weights of a merge are written, and with how much memory, beside PEFT's merge_and_unload.

Run     .venv/bin/python benchmarks/merge.py            three rounds on a 1.5B-shaped model; needs 10 GB of disk
        .venv/bin/python benchmarks/merge.py --rounds N --layers N --folder FOLDER --json FILE

A random bfloat16 model of Qwen2-1.5B's shape in files of 500 MB, and a LoRA adapter of rank 16 on all its linear
layers, are made once. Each round runs both sides, one after the other and each in a process of its own:
  lockstep    merge.write_weights, which ends when all is on the disk; apart from that, the time to read every byte
              back from the disk (safetensors_stream.verify), as stage 03 does in another process, and PEFT does not
  PEFT        AutoModelForCausalLM and PeftModel from_pretrained, merge_and_unload, save_pretrained, files put on
              the disk
Imports are not counted. Peak memory is that of anonymous pages (mapped files apart), sampled every 10 ms, with
imports. The results are compared tensor by tensor, and with the base plus B·A in float64.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QWEN2 = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
NEEDED = 10 * 10**9  # bytes of disk: the model, and two merged ones at a time

Runs = dict[str, list[dict[str, float]]]  # lockstep, peft → figures of each round


def make(home: Path, layers: int) -> dict[str, float]:
    """home/base and home/adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", **QWEN2 | {"num_hidden_layers": layers})
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.to_empty(device="cpu")
    network.tie_weights()
    for weight in network.parameters():
        weight.data.normal_(0, 0.02)
    network.save_pretrained(home / "base", max_shard_size="500MB")
    model = get_peft_model(network, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape) * 0.02
    model.save_pretrained(home / "adapter", save_embedding_layers=False)
    return {}


class Peak:
    """The most anonymous memory that this process had, in bytes, while the block lasted."""

    def __enter__(self) -> "Peak":
        self.bytes, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123 - a hundred times a second
                line = next(line for line in status if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, int(line.split()[1]) * 1024)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def job(kind: str, home: Path, layers: int) -> None:
    """Make the model, merge it once, or compare the results; prints figures as JSON."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    if kind == "make":
        return print(json.dumps(make(home, layers)))
    if kind == "compare":
        return print(json.dumps(compare(home)))
    work = ours(home) if kind == "lockstep" else peft(home)
    with Peak() as peak:
        started = time.perf_counter()
        again = work()
        seconds = time.perf_counter() - started
        read_back = again() if again else 0.0
    print(json.dumps({"seconds": seconds, "peak_bytes": peak.bytes, "read_back": read_back}))


def ours(home: Path) -> Callable[[], Callable[[], float]]:
    """What is measured: writes the merge, and returns what reads it back and how many seconds that takes."""
    from lockstep.merging import merge, safetensors_stream
    from lockstep.model import adapter_files

    out = home / "lockstep"

    def work() -> Callable[[], float]:
        sums = merge.write_weights(home / "base", out, adapter_files.read(home / "adapter"), None)

        def read_back() -> float:
            started = time.perf_counter()
            safetensors_stream.verify(out, sums)
            return time.perf_counter() - started

        return read_back

    return work


def peft(home: Path) -> Callable[[], None]:
    """The same with PEFT, which reads nothing back."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    def work() -> None:
        base = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(base, home / "adapter").merge_and_unload()
        merged.save_pretrained(home / "peft", max_shard_size="500MB")
        for file in (home / "peft").glob("*.safetensors"):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())

    return work


def compare(home: Path) -> dict[str, float]:
    """Shares of all weights: equal on both sides; of ours, not the bfloat16 that is nearest to the exact one."""
    import torch
    from safetensors.torch import load_file

    from lockstep.merging import safetensors_stream

    def tensors(folder: Path) -> dict[str, Any]:
        loaded = {}
        for file in safetensors_stream.files(folder):
            loaded |= load_file(file)
        return loaded

    base, mine, theirs = (tensors(home / name) for name in ("base", "lockstep", "peft"))
    lora = load_file(home / "adapter/adapter_model.safetensors")
    assert mine.keys() == theirs.keys() == base.keys()
    wrong, total, equal = 0, 0, 0
    for name, weight in base.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        exact = weight
        if f"{module}.lora_A.weight" in lora:
            a, b = (lora[f"{module}.lora_{side}.weight"].double() for side in "AB")
            exact = (weight.double() + 2 * (b @ a)).to(torch.bfloat16)
        wrong += int((mine[name] != exact).sum())
        equal += int((mine[name] == theirs[name]).sum())
        total += weight.numel()
    return {"equal": equal / total, "not_nearest": wrong / total}


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}–{max(values):.{digits}f}]"


def run(kind: str, home: Path, layers: int) -> dict[str, float]:
    shutil.rmtree(home / kind, ignore_errors=True)
    os.sync()  # so that what the other side wrote is not put on the disk at this one's cost
    words = [sys.executable, __file__, "--job", kind, str(home), "--layers", str(layers)]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"{kind} failed:\n{answer.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=QWEN2["num_hidden_layers"])
    parser.add_argument("--folder", type=Path, help="where the models are written for the time of the run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=2, metavar=("KIND", "HOME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        return job(options.job[0], Path(options.job[1]), options.layers)

    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        home = Path(scratch)
        if (free := shutil.disk_usage(home).free) < NEEDED:
            raise SystemExit(f"{home} has {free / 1e9:.0f} GB free and {NEEDED / 1e9:.0f} are needed: give --folder")
        os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "scripts")}
        run("make", home, options.layers)
        runs: Runs = {"lockstep": [], "peft": []}
        for number in range(options.rounds):
            for kind in runs:
                figures = run(kind, home, options.layers)
                runs[kind].append(figures)
                line = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                print(f"round {number + 1} {kind:9} {line}", flush=True)
        report(runs, run("compare", home, options.layers), options)


def report(runs: Runs, weights: dict[str, float], options: argparse.Namespace) -> None:
    """The table, and the JSON."""
    cores = os.cpu_count()
    print(f"\n{options.layers} layers of Qwen2-1.5B's shape, {options.rounds} rounds, {cores} cores; median [range]")
    medians = {}
    for kind, rounds in runs.items():
        seconds = [figures["seconds"] for figures in rounds]
        peaks = [figures["peak_bytes"] / 1e6 for figures in rounds]
        read_back = [figures["read_back"] for figures in rounds]
        print(
            f"{kind:10} seconds {spread(seconds, 1):20} peak anonymous MB {spread(peaks, 0):20} "
            f"read back {spread(read_back, 1)}"
        )
        medians[kind] = {
            "seconds": statistics.median(seconds),
            "peak_bytes": statistics.median(peaks) * 1e6,
            "read_back": statistics.median(read_back),
        }
    mine, theirs = medians["lockstep"], medians["peft"]
    # the two sides of a round meet the same load of a shared machine and disk, those of two rounds may not
    pairs = list(zip(runs["lockstep"], runs["peft"], strict=True))
    ratios = [peft["seconds"] / lockstep["seconds"] for lockstep, peft in pairs]
    with_read_back = [peft["seconds"] / (lockstep["seconds"] + lockstep["read_back"]) for lockstep, peft in pairs]
    result = {
        "rounds": options.rounds,
        "layers": options.layers,
        "cores": cores,
        "ratio": statistics.median(ratios),
        "ratio_of_medians": theirs["seconds"] / mine["seconds"],
        "ratio_with_read_back": statistics.median(with_read_back),
        "memory_ratio": mine["peak_bytes"] / theirs["peak_bytes"],
        "weights": weights,
        **medians,
        "runs": runs,
    }
    print(
        f"PEFT's time over ours, round by round, {spread(ratios, 2)} (ours is {1 / result['ratio']:.2f} of it; "
        f"with reading back {1 / result['ratio_with_read_back']:.2f}), "
        f"our peak over PEFT's {result['memory_ratio']:.2f}\n"
        f"{weights['equal']:.4%} of the weights are equal on both sides; "
        f"{weights['not_nearest']:.4%} of ours are not the nearest bfloat16 to the exact ones"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
