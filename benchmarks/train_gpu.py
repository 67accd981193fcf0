"""How fast stage 02 trains on an NVIDIA GPU, and in how much of its memory, beside TRL's SFTTrainer with packing.

Run     .venv/bin/python benchmarks/train_gpu.py
        .venv/bin/python benchmarks/train_gpu.py --layers 4 --lengths 2048 --kinds lockstep trl --checkpointing

Without options: a model of Qwen2.5-7B's shape, passes of 2,048 and 4,096 tokens.

Both train the same NF4 model of random weights with the same LoRA (r 16, dropout 0.05, all linear layers), paged
8-bit AdamW, in bfloat16, on the same random rows of 128 to 1,024 tokens, three quarters of them supervised.
Both put rows into passes of at most that many tokens: Lockstep lays the rows of a step end to end, TRL packs
the data set (bfd). liger: with the kernels of liger-kernel, which must be installed. The model takes 15 GB of
disk, where TMPDIR points. Each run is a process of its own:
  tokens/s   tokens of the rows over the seconds of a step: median [range] of the steps after the first two
  MFU        4 FLOP a token and weight of the linear layers (only the adapter has gradients of weights; attention
             is left out), over what the card can do at most
  peak       the most that was allocated while training, the model included
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

KINDS = ("lockstep", "trl", "lockstep-liger", "trl-liger")
PEAK_TFLOPS = {"H100 80GB HBM3": 989, "A100": 312}  # dense bfloat16, as NVIDIA gives it
ROWS_IN_A_STEP, WARM = 32, 2
SHAPE: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def prepare(home: Path, layers: int, rows: int) -> None:
    """A model of random weights, and rows of random ids."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    torch.manual_seed(0)
    torch.set_default_device("cuda")
    network = AutoModelForCausalLM.from_config(Qwen2Config(num_hidden_layers=layers, **SHAPE), dtype=torch.bfloat16)
    folder = home / "models/random"
    network.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.set_default_device("cpu")
    random_rows = []
    for number in range(rows):
        ids = torch.randint(2, SHAPE["vocab_size"], (int(torch.randint(128, 1025, ())),)).tolist()
        silent = len(ids) // 4
        random_rows.append({"input_ids": ids, "labels": [-100] * silent + ids[silent:], "row": str(number)})
    Dataset.from_list(random_rows).save_to_disk(str(home / "rows"))


def clock(tokens: Any) -> Any:
    """A TrainerCallback that notes seconds and tokens at the end of every step."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seen: list[tuple[float, int]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            self.seen.append((time.perf_counter(), tokens()))

    return Clock()


def job(kind: str, home: Path, length: int, checkpointing: bool) -> dict[str, Any]:
    """Train once in this process."""
    import torch
    from datasets import load_from_disk

    rows = load_from_disk(str(home / "rows"))
    liger = kind.endswith("-liger")
    trainer = (ours if kind.startswith("lockstep") else trl)(rows, length, checkpointing, liger)
    counted = (lambda: trainer.tokens) if kind.startswith("lockstep") else (lambda: trainer._total_train_tokens)
    watch = clock(counted)
    trainer.add_callback(watch)
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    losses = [float(log["loss"]) for log in trainer.state.log_history if "loss" in log]
    steps = list(zip(watch.seen[WARM - 1 :], watch.seen[WARM:], strict=False))
    return {
        "tokens_per_second": [(b[1] - a[1]) / (b[0] - a[0]) for a, b in steps],
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "losses": losses,
    }


def ours(rows: Any, length: int, checkpointing: bool, liger: bool) -> Any:
    import torch

    from lockstep.settings import yaml_file
    from lockstep.training import setup

    given = {
        "run": "bench",
        "model.source": "local",
        "model.path": "random",
        "model.name": "random",
        "data.max_length": str(length),
        "train.per_device_train_batch_size": "1",
        "train.gradient_accumulation_steps": str(ROWS_IN_A_STEP),
        "train.logging_steps": "1",
        "train.save_steps": "1000000",
        "train.gradient_checkpointing": str(checkpointing).lower(),
        "train.use_liger_kernel": str(liger).lower(),
    }
    settings = yaml_file.load(None, given)
    return setup.build(settings, "cuda", torch.bfloat16, rows, None, 0, []).trainer


def trl(rows: Any, length: int, checkpointing: bool, liger: bool) -> Any:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    folder = Path(os.environ["LOCKSTEP_HOME"]) / "models/random"
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=four_bit, device_map={"": "cuda"}
    )
    mean = sum(map(len, rows["input_ids"])) / len(rows)
    return SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_length=length,
            packing=True,
            bf16=True,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=round(ROWS_IN_A_STEP * mean / length),
            num_train_epochs=1,
            learning_rate=2e-4,
            warmup_steps=0.03,
            optim="paged_adamw_8bit",
            save_strategy="no",
            gradient_checkpointing=checkpointing,
            use_liger_kernel=liger,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
        ),
        train_dataset=rows.remove_columns("row"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


def weights(layers: int) -> int:
    """How many weights all linear layers have, the output layer included."""
    hidden, inner, vocabulary = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    keys = hidden * SHAPE["num_key_value_heads"] // SHAPE["num_attention_heads"]
    total: int = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner) + hidden * vocabulary
    return total


def line(measured: dict[str, Any], layers: int, card: str) -> str:
    if "error" in measured:
        return str(measured["error"])
    speeds = measured["tokens_per_second"]
    middle = statistics.median(speeds)
    peak = next((value for name, value in PEAK_TFLOPS.items() if name in card), None)
    mfu = f"{4 * weights(layers) * middle / peak / 1e12:6.1%} MFU" if peak else ""
    return (
        f"{middle:8,.0f} tokens/s [{min(speeds):,.0f}–{max(speeds):,.0f}]  {mfu}  "
        f"peak {measured['peak_bytes'] / 2**30:5.1f} GiB  "
        f"loss {measured['losses'][0]:.3f} → {measured['losses'][-1]:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in both")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=2, metavar=("KIND", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        home = Path(os.environ["LOCKSTEP_HOME"])
        print(json.dumps(job(options.job[0], home, int(options.job[1]), options.checkpointing)))
        return
    import torch

    card, runs = torch.cuda.get_device_name(), {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"LOCKSTEP_HOME": scratch, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "scripts")}
        prepare(Path(scratch), options.layers, ROWS_IN_A_STEP * options.steps)
        torch.cuda.empty_cache()
        print(
            f"{card}, torch {torch.__version__}; Qwen2.5-7B's shape, {options.layers} layers, "
            f"{weights(options.layers) / 1e9:.2f}e9 weights in linear layers; "
            f"gradient checkpointing {'on' if options.checkpointing else 'off'}",
            flush=True,
        )
        for length in options.lengths:
            for kind in options.kinds:
                measured = runs[f"{length} {kind}"] = measure(kind, length, options.checkpointing)
                print(f"{length:5} {kind:15} {line(measured, options.layers, card)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


def measure(kind: str, length: int, checkpointing: bool) -> dict[str, Any]:
    """One run, in a process of its own: what `job` returns, or an `error`."""
    words = [sys.executable, __file__, "--job", kind, str(length), *(["--checkpointing"] if checkpointing else [])]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    if "OutOfMemory" in answer.stderr:
        return {"error": "out of memory"}
    if answer.returncode:
        raise SystemExit(f"{kind} failed:\n{answer.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
