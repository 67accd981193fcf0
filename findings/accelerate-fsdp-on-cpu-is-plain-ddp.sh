#!/usr/bin/env bash
# Library: accelerate 1.15.0, with torch 2.13.0 (CPU)
# Expected: a launch config with distributed_type FSDP, fsdp_version 2 and use_cpu shards the model over the
#   two processes, or is refused
# Happens: FSDP is set up for accelerators only. On CPU processes the same config gives plain
#   DistributedDataParallel with every weight whole in each process, without a word. A test of FSDP that runs
#   on CPUs this way tests DDP, while torch's own fully_shard does shard on gloo processes
# Output seen:
#   accelerate: DistributedDataParallel, a Parameter of (8, 8)
#   fully_shard: a DTensor, here (4, 8)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu numpy==2.3.5 accelerate==1.15.0

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
unset PYTHONPATH
cat >"$work/fsdp.yaml" <<'YAML'
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_processes: 2
num_machines: 1
machine_rank: 0
main_process_port: 0
mixed_precision: "no"
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: NO_WRAP
  fsdp_reshard_after_forward: true
YAML
cat >"$work/shard.py" <<'PY'
import sys

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

accelerator = Accelerator(cpu=True)
model = accelerator.prepare(torch.nn.Linear(8, 8))
weight = next(model.parameters())
by_torch = fully_shard(torch.nn.Linear(8, 8)).weight
if accelerator.is_main_process:
    print(f"accelerate: {type(model).__name__}, a {type(weight).__name__} of {tuple(weight.shape)}")
    print(f"fully_shard: a {type(by_torch).__name__}, here {tuple(by_torch.to_local().shape)}")
if isinstance(weight, DTensor) or not isinstance(by_torch, DTensor):
    sys.exit("changed: accelerate shards on CPU processes")
accelerator.end_training()
if accelerator.is_main_process:
    print("as seen: what was asked for is FSDP, and what runs is DDP")
PY
"$venv/bin/python" -I -m accelerate.commands.launch --config_file "$work/fsdp.yaml" "$work/shard.py"
