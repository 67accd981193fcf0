#!/usr/bin/env bash
# Library: peft 0.21.2 on bitsandbytes 0.50.2, with torch 2.13.0 (CPU)
# Expected: an adapter of two parameters of a module (target_parameters) that was trained where bitsandbytes
#   holds them in 4 bits can be loaded where they are plain, as one of linear layers can: the file is the same
# Happens: PEFT nests one wrapper for each parameter, and its file does not say which is whose: on plain
#   parameters the order is that of the class, on parametrized ones that of the names. Where the two
#   differ, as for gate_up_proj and down_proj, the factors are loaded for each other's parameter: an error
#   about sizes, or, where the shapes are the same, not a word
# Output seen:
#   plain, of a plain one: every factor came back as the parameter's own
#   plain, of a 4-bit one: up's factors are now down's, and down's are up's, without an error or a warning
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu transformers==5.19.0 numpy==2.3.5 peft==0.21.2 accelerate==1.15.0 bitsandbytes==0.50.2

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - 2>/dev/null <<'PY'
import sys
import tempfile
import warnings

import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

warnings.simplefilter("ignore")


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(0.1 * torch.randn(4, 64, 64))
        self.down = nn.Parameter(0.1 * torch.randn(4, 64, 64))

    def forward(self, x):
        for up, down in zip(self.up, self.down):
            x = x + nn.functional.linear(nn.functional.relu(nn.functional.linear(x, up)), down)
        return x


def base(four_bit):
    torch.manual_seed(0)
    model = nn.Sequential(Experts())
    for name in ("up", "down") if four_bit else ():
        replace_parameter_4bit(model[0], name, quant_type="nf4")
    return model


def factors(model):
    """B of each parameter's wrapper, by the parameter's name."""
    found, wrapper = {}, model.base_model.model[0]
    while hasattr(wrapper, "parameter_name"):
        found[wrapper.parameter_name] = wrapper.lora_B["default"].weight
        wrapper = wrapper.base_layer
    return found


def reloaded(four_bit):
    """The factors of an adapter, and what they are after it was saved and loaded on plain parameters."""
    config = LoraConfig(r=2, target_modules=[], target_parameters=["0.up", "0.down"])
    model = get_peft_model(base(four_bit), config)
    for value, name in enumerate(("up", "down"), 1):
        nn.init.constant_(factors(model)[name], value)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(base(False), folder)
    return {name: weight.mean().item() for name, weight in factors(again).items()}


if reloaded(False) != {"up": 1, "down": 2}:
    sys.exit("changed: an adapter of plain parameters does not come back either")
print("plain, of a plain one: every factor came back as the parameter's own")
if reloaded(True) != {"up": 2, "down": 1}:
    sys.exit("changed: an adapter of 4-bit parameters is loaded right")
print("plain, of a 4-bit one: up's factors are now down's, and down's are up's, without an error or a warning")
print("as seen: an adapter that was trained on 4-bit parameters is another one on plain parameters")
PY
