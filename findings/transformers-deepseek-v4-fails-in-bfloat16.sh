#!/usr/bin/env bash
# Library: transformers 5.19.0, with torch 2.13.0 (CPU)
# Expected: from_pretrained(dtype=torch.bfloat16) gives a DeepSeek-V4 that computes, as it does of other models
# Happens: the class keeps its norms in float32, and what they give goes into linear layers in bfloat16: the first
#   pass fails, unless it is made under autocast or the model is loaded in float32
# Output seen:
#   float32: logits (1, 17, 64)
#   bfloat16 under autocast: logits (1, 17, 64)
#   bfloat16: RuntimeError: expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16
#   as seen: a checkpoint in bfloat16 cannot be computed in bfloat16
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
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

torch.manual_seed(0)
config = DeepseekV4Config(
    vocab_size=64, hidden_size=64, moe_intermediate_size=64, num_attention_heads=4, head_dim=16, q_lora_rank=32,
    n_routed_experts=4, num_experts_per_tok=2, max_position_embeddings=128, hc_mult=2, o_groups=2, o_lora_rank=32,
    index_n_heads=2, index_head_dim=16, index_topk=16, sliding_window=64, num_nextn_predict_layers=0,
    partial_rotary_factor=0.5, num_hidden_layers=1, layer_types=["sliding_attention"], mlp_layer_types=["moe"],
    bos_token_id=1, eos_token_id=2, pad_token_id=0)
DeepseekV4ForCausalLM(config).bfloat16().save_pretrained("saved")
ids, seen = torch.arange(3, 20)[None], []
for dtype, cast in ((torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)):
    model = DeepseekV4ForCausalLM.from_pretrained("saved", dtype=dtype).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=cast):
        try:
            result = f"logits {tuple(model(ids).logits.shape)}"
        except RuntimeError as error:
            result = f"RuntimeError: {error}"
    print(f"{str(dtype).removeprefix('torch.')}{' under autocast' if cast else ''}: {result}")
    seen.append(result.startswith("logits"))
if not all(seen[:2]):
    sys.exit("changed: float32 or autocast fails, too")
if seen[2]:
    sys.exit("changed: the model computes in bfloat16")
print("as seen: a checkpoint in bfloat16 cannot be computed in bfloat16")
PY
