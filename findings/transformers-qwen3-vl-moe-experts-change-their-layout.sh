#!/usr/bin/env bash
# Library: transformers 5.19.0, with torch 2.13.0 (CPU)
# Expected: a Qwen3-VL-MoE checkpoint in its publisher's layout, with expert matrices [experts, in, out], loads
#   as it is, and save_pretrained writes that layout again
# Happens: the conversion transposes experts only where the file's shape is not the parameter's. On saving
#   the same test finds nothing to transpose: [experts, out, in] is written under the same names, which no
#   reader of the publisher's layout expects. And where 2 x moe_intermediate_size equals hidden_size the
#   matrices are square: loading takes them as they lie, and the model is another one, without a word
# Output seen:
#   moe_intermediate_size 48: read (4, 64, 96), written (4, 96, 64); logits differ by 0, of 0.474
#   moe_intermediate_size 32: read (4, 64, 64), written (4, 64, 64); logits differ by 0.84, of 0.531
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
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
from transformers.utils import logging

logging.set_verbosity_error()
NAME = "model.language_model.layers.0.mlp.experts.gate_up_proj"


def random_model(inner):
    text = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": inner,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "num_experts": 4, "num_experts_per_tok": 2}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64,
              "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    torch.manual_seed(0)
    model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision))
    for name, weight in model.named_parameters():
        if "experts" in name:
            weight.data.normal_(std=0.3)
    return model.eval()


seen = []
for inner in (48, 32):
    model, ids = random_model(inner), torch.arange(4, 20)[None]
    published = {}
    for name, tensor in model.state_dict().items():
        published[name] = (tensor.transpose(1, 2) if "experts" in name else tensor).contiguous()
    model.config.save_pretrained(f"published-{inner}")
    save_file(published, f"published-{inner}/model.safetensors", {"format": "pt"})
    loaded = Qwen3VLMoeForConditionalGeneration.from_pretrained(f"published-{inner}").eval()
    loaded.save_pretrained(f"saved-{inner}")
    written = load_file(f"saved-{inner}/model.safetensors")[NAME]
    with torch.no_grad():
        right, gap = model(input_ids=ids).logits, loaded(input_ids=ids).logits
    gap = (gap - right).abs().max().item()
    print(f"moe_intermediate_size {inner}: read {tuple(published[NAME].shape)}, written {tuple(written.shape)}; "
          f"logits differ by {gap:.3g}, of {right.abs().max():.3g}")
    seen.append((gap, written.shape == published[NAME].shape))
if seen[0][1]:
    sys.exit("changed: what was read is written in the same layout")
if seen[1][0] < 0.1:
    sys.exit("changed: square experts are read as they were published")
if seen[0][0] > 1e-4:
    sys.exit("changed: experts that are not square are read otherwise than they were published, too")
print("as seen: experts are written in another layout than they were read, and square ones are read wrong")
PY
