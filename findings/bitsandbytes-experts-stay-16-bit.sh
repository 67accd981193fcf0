#!/usr/bin/env bash
# Library: bitsandbytes 0.50.2 through transformers 5.19.0, with torch 2.13.0 (CPU) and accelerate 1.15.0
# Expected: a mixture-of-experts model loaded with load_in_4bit=True takes about a quarter of its size in
#   bfloat16
# Happens: transformers 5 keeps the experts of a layer as three-dimensional parameters, not as nn.Linear, and
#   only nn.Linear is quantized: most of the model stays in bfloat16 without a word. By the shape of
#   Qwen3-30B-A3B, 3 % of the weights would be in 4 bits, and the model would take about 60 GB
# Output seen:
#   experts after loading in 4 bits: torch.bfloat16, (32, 256, 256)
#   size in 4 bits beside bfloat16: 96%
#   the shape of Qwen3-30B-A3B: 30.5e9 weights, 3.0% of them in nn.Linear, 60 GB in 4 bits
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu transformers==5.19.0 numpy==2.3.5 accelerate==1.15.0 bitsandbytes==0.50.2

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - <<'PY'
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

shape = {"vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 64,
         "num_key_value_heads": 2, "moe_intermediate_size": 128, "num_experts": 32, "num_experts_per_tok": 2}
folder = tempfile.mkdtemp()
Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape)).to(torch.bfloat16).save_pretrained(folder)
plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
quantized = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=four_bit)
experts = quantized.model.layers[0].mlp.experts.gate_up_proj
ratio = quantized.get_memory_footprint() / plain.get_memory_footprint()
print(f"experts after loading in 4 bits: {experts.dtype}, {tuple(experts.shape)}")
print(f"size in 4 bits beside bfloat16: {ratio:.0%}")

with torch.device("meta"):  # shapes only
    large = Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
        head_dim=128, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8))
linear = sum(layer.weight.numel() for name, layer in large.named_modules()
             if isinstance(layer, torch.nn.Linear) and name != "lm_head")
weights = large.num_parameters()
share = linear / weights
print(f"the shape of Qwen3-30B-A3B: {weights / 1e9:.1f}e9 weights, {share:.1%} of them in nn.Linear, "
      f"{(linear / 2 + (weights - linear) * 2) / 1e9:.0f} GB in 4 bits")
if experts.dtype != torch.bfloat16 or ratio < 0.8 or share > 0.1:
    sys.exit("changed: experts are now quantized")
print("as seen: the experts stay in bfloat16")
PY
