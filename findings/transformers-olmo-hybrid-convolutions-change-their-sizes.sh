#!/usr/bin/env bash
# Library: transformers 5.19.0, with torch 2.13.0 (CPU)
# Expected: from_pretrained and save_pretrained write the tensors that were read: OLMo hybrid's checkpoints hold the
#   convolutions of queries, keys and values, which have different sizes, and transformers joins them while it loads
# Happens: they are written as three parts of one size. transformers joins them again to the same; whoever reads the
#   files by another program gets rows of keys and values in the convolution of queries, without an error here
# Output seen:
#   q_conv1d: read (48, 1, 4), written (64, 1, 4)
#   k_conv1d: read (48, 1, 4), written (64, 1, 4)
#   v_conv1d: read (96, 1, 4), written (64, 1, 4)
#   as seen: three convolutions of different sizes are written as three of one size
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu transformers==5.19.0 numpy==2.3.5

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
cd "$work"
"$venv/bin/python" -I - <<'PY'
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import OlmoHybridConfig, OlmoHybridForCausalLM

PARTS = {"q": 48, "k": 48, "v": 96}  # rows of each projection, and of the convolution behind it
torch.manual_seed(0)
config = OlmoHybridConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=12,
    linear_value_head_dim=24, layer_types=["linear_attention", "full_attention"], pad_token_id=0)
model = OlmoHybridForCausalLM(config)
published = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
whole = published.pop("model.layers.0.linear_attn.conv1d.weight")
for part, tensor in zip(PARTS, whole.split(list(PARTS.values())), strict=True):
    published[f"model.layers.0.linear_attn.{part}_conv1d.weight"] = tensor.contiguous()
config.architectures = ["OlmoHybridForCausalLM"]
config.save_pretrained("published")
save_file(published, "published/model.safetensors", {"format": "pt"})
loaded = OlmoHybridForCausalLM.from_pretrained("published")
same = torch.equal(loaded.model.layers[0].linear_attn.conv1d.weight, whole)
loaded.save_pretrained("saved")
written = load_file("saved/model.safetensors")
seen = []
for part in PARTS:
    name = f"model.layers.0.linear_attn.{part}_conv1d.weight"
    seen.append(written[name].shape == published[name].shape)
    print(f"{part}_conv1d: read {tuple(published[name].shape)}, written {tuple(written[name].shape)}")
if not same:
    sys.exit("changed: the parts are not joined as they were published")
if any(seen):
    sys.exit("changed: a convolution is written in the shape that it was read in")
print("as seen: three convolutions of different sizes are written as three of one size")
PY
