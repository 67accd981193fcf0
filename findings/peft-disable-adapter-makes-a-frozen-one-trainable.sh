#!/usr/bin/env bash
# Library: peft 0.21.2, with torch 2.13.0 (CPU) and transformers 5.19.0
# Expected: `with model.disable_adapter():` looks at the base for a moment and leaves everything as it was
# Happens: PeftModel.from_pretrained loads an adapter frozen; when the block ends, its weights require
#   gradients. An optimizer made after such a comparison with the base trains what was meant to stay, and
#   activations are kept for it
# Output seen:
#   weights that require gradients: 0 after loading, 1024 after `with model.disable_adapter()`
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu transformers==5.19.0 numpy==2.3.5 peft==0.21.2 accelerate==1.15.0

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - <<'PY'
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2))


def trainable():
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


folder = tempfile.mkdtemp()
get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).save_pretrained(folder)
model = PeftModel.from_pretrained(base(), folder)  # is_trainable=False is the default
before = trainable()
with torch.no_grad(), model.disable_adapter():
    model(input_ids=torch.arange(8)[None])
after = trainable()
print(f"weights that require gradients: {before} after loading, {after} after `with model.disable_adapter()`")
if before != 0 or after == 0:
    sys.exit("changed: the frozen adapter stays frozen")
print("as seen: the frozen adapter has become trainable")
PY
