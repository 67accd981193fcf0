#!/usr/bin/env bash
# Library: peft 0.21.2, with torch 2.13.0 (CPU) and transformers 5.19.0
# Expected: target_modules="all-linear" adapts every nn.Linear but the output layer, as its documentation says
# Happens: for mixture-of-experts models whose names PEFT rewrites (here DeepSeek-V3; GLM-4-MoE does the
#   same), the linear layers of dense MLPs and of shared experts, which every token passes through, get no
#   adapter; the routed experts and the router do. No warning names what was left out
# Output seen:
#   Llama: 14 linear layers, 0 of them without an adapter
#   DeepSeek-V3: 16 linear layers, 6 of them without an adapter
#     model.layers.0.mlp.down_proj
#     model.layers.0.mlp.gate_proj
#     model.layers.0.mlp.up_proj
#     model.layers.1.mlp.shared_experts.down_proj
#     model.layers.1.mlp.shared_experts.gate_proj
#     model.layers.1.mlp.shared_experts.up_proj
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
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 4}
experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
           "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
           "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
models = {"Llama": LlamaForCausalLM(LlamaConfig(**shape)),
          "DeepSeek-V3": DeepseekV3ForCausalLM(DeepseekV3Config(**shape, **experts))}
left_out = {}
for name, model in models.items():
    linear = {n for n, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)} - {"lm_head"}
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    prefix = "base_model.model."
    with_adapter = {n.split(".lora_A")[0].removeprefix(prefix) for n, _ in adapted.named_modules() if ".lora_A" in n}
    left_out[name] = sorted(linear - with_adapter)
    print(f"{name}: {len(linear)} linear layers, {len(left_out[name])} of them without an adapter")
for layer in left_out["DeepSeek-V3"]:
    print(f"  {layer}")
if left_out["Llama"] or not any("shared_experts" in layer for layer in left_out["DeepSeek-V3"]):
    sys.exit("changed: all-linear no longer leaves linear layers out")
print("as seen: all-linear leaves dense MLPs and shared experts out")
PY
