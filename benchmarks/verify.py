"""How long `verify` takes over a model of 7B's shape, with how much memory, and whether it knows other tools' exports.

Run     .venv/bin/python benchmarks/verify.py                  6 of 28 layers; needs 9 GB of disk
        .venv/bin/python benchmarks/verify.py --layers N --folder FOLDER --json FILE
        .venv/bin/python benchmarks/verify.py --layers 0 --llamafactory ENVIRONMENT/bin/llamafactory-cli

A bfloat16 base of Qwen2.5-7B's shape, of which one layer and the head hold random numbers and the rest zeros, an
adapter of rank 16 on all linear layers, and their merge on NF4 weights: the case that takes most, as each tensor is
quantized to be compared. Memory is the peak of the process, with libraries. It does not grow with the layers, but for
the adapter.

With --llamafactory, LLaMA-Factory's own export merges a tiny adapter, in an environment of its own, and `verify` must
find the trained model in it, and another one in the base saved by the same export.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, INNER, VOCABULARY, KEYS = 3584, 18_944, 152_064, 512
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.down_proj")  # fmt: skip
ROWS = (HIDDEN, KEYS, KEYS, HIDDEN, INNER, INNER, HIDDEN)
SIZES = tuple((rows, INNER if module == "mlp.down_proj" else HIDDEN) for module, rows in zip(LINEAR, ROWS, strict=True))
CONFIG = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    "dtype": "bfloat16", "max_position_embeddings": 32_768,
}  # fmt: skip


def make(folder: Path, layers: int) -> None:
    """base/, adapter/ and merged/."""
    import torch
    from safetensors.torch import save_file

    from lockstep.merging import dequantizer
    from lockstep.settings.schema import Quantization

    torch.manual_seed(0)
    for name in ("base", "merged", "adapter"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    adapter: dict[str, Any] = {}
    index: dict[str, str] = {}
    for layer in range(layers):
        base: dict[str, Any] = {}
        merged = {}
        for module, (out, into) in zip(LINEAR, SIZES, strict=True):
            name = f"model.layers.{layer}.{module}"
            weight = torch.zeros(out, into) if layer else torch.randn(out, into) * 0.02
            base[f"{name}.weight"] = weight.bfloat16()
            a, b = torch.randn(16, into) * 0.01, torch.randn(out, 16) * 0.01
            adapter |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            restored = dequantizer.round_trip(weight.bfloat16(), torch.bfloat16, Quantization(), "cpu")
            merged[f"{name}.weight"] = (restored.float() + 2 * (b @ a)).bfloat16()
            if module in LINEAR[:3]:
                base[f"{name}.bias"] = merged[f"{name}.bias"] = torch.zeros(out).bfloat16()
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{layer}.{norm}.weight"
            base[name] = merged[name] = torch.ones(HIDDEN).bfloat16()
        _save(folder, f"layer-{layer}.safetensors", base, merged, index)
    ends = {
        "model.embed_tokens.weight": torch.zeros(VOCABULARY, HIDDEN).bfloat16(),
        "model.norm.weight": torch.ones(HIDDEN).bfloat16(),
        "lm_head.weight": (torch.randn(VOCABULARY, HIDDEN) * 0.02).bfloat16(),
    }
    _save(folder, "ends.safetensors", ends, ends, index)
    for name in ("base", "merged"):
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    save_file(adapter, folder / "adapter/adapter_model.safetensors")
    targets = [module.partition(".")[2] for module in LINEAR]
    content = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": targets}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(content | {"base_model_name_or_path": "base"}))


def _save(folder: Path, file: str, base: dict[str, Any], merged: dict[str, Any], index: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(base, folder / "base" / file)
    save_file(merged, folder / "merged" / file)
    index |= dict.fromkeys(base, file)


def verify(folder: Path, *words: str) -> dict[str, Any]:
    """verify.json of base/, adapter/ and merged/ in a folder."""
    given = [word for name in ("base", "adapter", "merged") for word in (f"--{name}", str(folder / name))]
    command = [sys.executable, str(ROOT / "scripts/verify.py"), *given, "--json", str(folder / "verify.json"), *words]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    results: dict[str, Any] = json.loads((folder / "verify.json").read_text())
    return results


def of_7b(folder: Path, layers: int) -> dict[str, Any]:
    """Seconds and peak memory over the shape of a 7B model."""
    make(folder, layers)
    start = time.perf_counter()
    weights = verify(folder)["proofs"]["weights"]
    assert weights["found"] == "merged_dequantized", weights
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    elements = weights["figures"]["elements"]
    seconds = time.perf_counter() - start
    return {"layers": layers, "elements": elements, "seconds": round(seconds, 1), "peak_bytes": peak}


def of_llamafactory(folder: Path, program: str) -> dict[str, Any]:
    """What `verify` says of LLaMA-Factory's own export, with and without the adapter."""
    from support import tiny

    base = tiny.model(folder / "base")
    config = base / "tokenizer_config.json"  # a class that transformers 4 knows
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tiny.peft_adapter(folder / "adapter", base, noise=0.05, use_rslora=True)
    told = {}
    for name, words in {
        "merged": ["--adapter_name_or_path", str(folder / "adapter"), "--finetuning_type", "lora"], "without": [],
    }.items():  # fmt: skip
        out = folder / name
        command = [
            program,
            "export",
            "--model_name_or_path",
            str(base),
            "--template",
            "chatml",
            "--export_dir",
            str(out),
        ]
        environment = os.environ | {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, *words], check=True, env=environment, capture_output=True)
        proofs = verify(folder, "--merged", str(out), "--template", str(out))["proofs"]
        told[name] = {proof: [content["status"], content["found"]] for proof, content in proofs.items()}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="0: leave the shape of 7B out [6]")
    parser.add_argument("--llamafactory", metavar="PROGRAM", help="llamafactory-cli of an environment of its own")
    parser.add_argument("--folder", type=Path, help="where the files go, and stay [a temporary folder]")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    places = f"{ROOT / 'scripts'}{os.pathsep}{ROOT / 'tests'}"
    if os.environ.get("PYTHONPATH") != places:  # begun anew, where the modules are found
        again = subprocess.run([sys.executable, *sys.argv], env=os.environ | {"PYTHONPATH": places}, check=False)
        sys.exit(again.returncode)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        results: dict[str, Any] = {}
        if chosen.layers:
            results |= of_7b(folder / "7b", chosen.layers)
        if chosen.llamafactory:
            results["llamafactory"] = of_llamafactory(folder / "llamafactory", chosen.llamafactory)
    print(json.dumps(results, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
