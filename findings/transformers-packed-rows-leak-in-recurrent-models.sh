#!/usr/bin/env bash
# Library: transformers 5.19.0, with torch 2.13.0 (CPU)
# Expected: rows packed by DataCollatorWithFlattening stay apart, since position_ids begin anew with each: the
#   loss on the second row does not depend on the first
# Happens: attention keeps them apart, but the short convolutions and recurrent states of hybrid models (LFM2,
#   Qwen3.5, GraniteMoeHybrid; here in torch's own code, without CUDA kernels) run on from row to row. Each
#   row is trained as if the one before it were its beginning, without an error
# Output seen:
#   Llama             gradient of the second row's loss at the first row: 0.000000
#   LFM2              gradient of the second row's loss at the first row: 0.000533
#   Qwen3.5           gradient of the second row's loss at the first row: 0.021152
#   GraniteMoeHybrid  gradient of the second row's loss at the first row: 0.145864
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
"$venv/bin/python" -I - <<'PY'
import sys

import torch
from transformers import (
    DataCollatorWithFlattening,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

FIRST, SECOND = list(range(5, 17)), list(range(30, 42))
batch = DataCollatorWithFlattening()([{"input_ids": row, "labels": row} for row in (FIRST, SECOND)])
shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}
linear = {"head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
          "linear_value_head_dim": 16}
mamba = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "num_local_experts": 0,
         "shared_intermediate_size": 64}
kinds = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**shape)),
    "LFM2": (Lfm2ForCausalLM, Lfm2Config(**shape, layer_types=["conv", "full_attention"])),
    "Qwen3.5": (Qwen3_5ForCausalLM,
                Qwen3_5TextConfig(**shape, **linear, layer_types=["linear_attention", "full_attention"])),
    "GraniteMoeHybrid": (GraniteMoeHybridForCausalLM,
                         GraniteMoeHybridConfig(**shape, **mamba, layer_types=["mamba", "attention"])),
}
leaks = {}
for name, (kind, config) in kinds.items():
    torch.manual_seed(0)
    model = kind(config).float()
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, position_ids=batch["position_ids"], use_cache=False).logits
    second = slice(len(FIRST), -1)
    torch.nn.functional.cross_entropy(logits[0, second], batch["input_ids"][0, len(FIRST) + 1 :]).backward()
    leaks[name] = embedded.grad[0, : len(FIRST)].abs().max().item()
    print(f"{name:17} gradient of the second row's loss at the first row: {leaks[name]:.6f}")
if leaks.pop("Llama") != 0 or min(leaks.values()) == 0:
    sys.exit("changed: packed rows no longer leak in all of these models")
print("as seen: packed rows leak in the hybrid models only")
PY
