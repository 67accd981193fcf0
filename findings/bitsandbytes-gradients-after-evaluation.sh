#!/usr/bin/env bash
# Library: bitsandbytes 0.50.2, with torch 2.13.0 (CPU), transformers 5.19.0 and peft 0.21.2
# Expected: an evaluation pass changes no weight, so the gradients of the same rows are the same before and
#   after it
# Happens: the first pass in eval mode without gradients repacks every 4-bit weight in place; the loss stays
#   right, but what should flow back through such a layer is then missing from all later gradients. Nothing is
#   raised; torch warns that an operator has no autograd kernel. Training that evaluates on the way goes on in
#   another direction
# Needs: a CPU with AVX-512-BF16 (elsewhere: exit 77)
# Output seen:
#   loss before and after the evaluation pass: 4.819 4.819
#   gradients, relative difference: 0.000 without the pass, 0.762 after it
set -euo pipefail

grep -q avx512_bf16 /proc/cpuinfo || {
    echo "skipped: this CPU has no AVX-512-BF16"
    exit 77
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu transformers==5.19.0 numpy==2.3.5 peft==0.21.2 accelerate==1.15.0 bitsandbytes==0.50.2

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - <<'PY'
import sys
import tempfile
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
torch.manual_seed(0)
folder = tempfile.mkdtemp()
shape = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=4)).save_pretrained(folder)
four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=four_bit)
model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
ids = torch.randint(0, 128, (2, 32))


def loss_and_gradients():
    model.train()
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])


loss, gradients = loss_and_gradients()
_, again = loss_and_gradients()
model.eval()
with torch.no_grad():
    model(input_ids=ids)
loss_after, gradients_after = loss_and_gradients()

repeated = ((again - gradients).norm() / gradients.norm()).item()
changed = ((gradients_after - gradients).norm() / gradients.norm()).item()
print(f"loss before and after the evaluation pass: {loss:.3f} {loss_after:.3f}")
print(f"gradients, relative difference: {repeated:.3f} without the pass, {changed:.3f} after it")
if repeated > 1e-6 or abs(loss_after - loss) > 0.01 or changed < 0.1:
    sys.exit("changed: an evaluation pass no longer changes the gradients")
print("as seen: the loss agrees, the gradients do not")
PY
