#!/usr/bin/env bash
# Library: peft 0.21.2 on bitsandbytes 0.50.2, with torch 2.13.0 (CPU)
# Expected: LoRA by target_parameters on parameters that bitsandbytes.nn.parametrize holds in 4 bits works as
#   on plain ones, as both libraries offer it for experts: disable_adapter gives the base's output again
# Happens: PEFT adds its update as one more parametrization for each pass and, where the parameter is
#   parametrized already, does not recognise its own afterwards. It warns and leaves it there: from the
#   first pass on, the base's output has the adapter in it, adapter disabled or not. Of two parameters of
#   one module the first pass lacks a part of the update as well
# Output seen:
#   plain, one parameter: the adapter moves the output by 12.1, and disabled again by 0
#   plain, two parameters: the adapter moves the output by 15.7, and disabled again by 0
#   4-bit, one parameter: the adapter moves the output by 12.3, and disabled again by 12.3
#   4-bit, two parameters: the adapter moves the output by 7.11, and disabled again by 11.6
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

import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from peft import LoraConfig, get_peft_model
from torch import nn


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(0.1 * torch.randn(4, 64, 64))
        self.down = nn.Parameter(0.1 * torch.randn(4, 64, 64))

    def forward(self, x):
        for up, down in zip(self.up, self.down):
            x = x + nn.functional.linear(nn.functional.relu(nn.functional.linear(x, up)), down)
        return x


def adapted(names, four_bit):
    torch.manual_seed(0)
    model = nn.Sequential(Experts())
    for name in ("up", "down") if four_bit else ():
        replace_parameter_4bit(model[0], name, quant_type="nf4")
    config = LoraConfig(r=2, target_modules=[], target_parameters=[f"0.{name}" for name in names])
    model = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.1)
    return model


@torch.no_grad()
def moved(model, x):
    with model.disable_adapter():
        before = model(x)
    with_adapter = model(x)
    with model.disable_adapter():
        after = model(x)
    return [(output - before).norm().item() for output in (with_adapter, after)]


torch.manual_seed(2)
x = torch.randn(3, 64)
remains = {}
for four_bit in (False, True):
    for names in (["up"], ["up", "down"]):
        kind = f"{'4-bit' if four_bit else 'plain'}, {('one parameter', 'two parameters')[len(names) - 1]}"
        effect, remains[kind] = moved(adapted(names, four_bit), x)
        print(f"{kind}: the adapter moves the output by {effect:.3g}, and disabled again by {remains[kind]:.3g}")
        if effect < 1:
            sys.exit("changed: the adapter has no effect")
if remains["plain, one parameter"] or remains["plain, two parameters"]:
    sys.exit("changed: on plain parameters, too, a disabled adapter goes on acting")
if min(remains["4-bit, one parameter"], remains["4-bit, two parameters"]) < 1:
    sys.exit("changed: an adapter on 4-bit parameters can be disabled")
print("as seen: an adapter on 4-bit parameters stays in them after its first pass")
PY
