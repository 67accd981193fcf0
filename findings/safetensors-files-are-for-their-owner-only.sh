#!/usr/bin/env bash
# Library: safetensors 0.8.0, with numpy 2.3.5
# Expected: save_file makes a file with the rights that the umask leaves, as open() and most writers do: 644
#   under umask 022
# Happens: the file has 600, whatever the umask, even where it replaces one that others could read. A model
#   saved by one user and served by another (a service account, a container) cannot be opened, while its
#   config.json beside it can
# Output seen:
#   umask 022; model.safetensors before: 644
#   config.json: 644
#   model.safetensors: 600
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages safetensors==0.8.0 numpy==2.3.5

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - <<'PY'
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

os.umask(0o022)
folder = Path(tempfile.mkdtemp())
(folder / "config.json").write_text("{}")
(folder / "model.safetensors").write_bytes(b"")  # readable by all, until it is written again
before = (folder / "model.safetensors").stat().st_mode & 0o777
save_file({"weight": np.zeros(4, dtype=np.float32)}, folder / "model.safetensors")
rights = {file.name: file.stat().st_mode & 0o777 for file in sorted(folder.iterdir())}
print(f"umask 022; model.safetensors before: {before:o}")
for name, mode in rights.items():
    print(f"{name}: {mode:o}")
if rights["model.safetensors"] != 0o600:
    sys.exit("changed: the umask now decides who may read the file")
print("as seen: only the owner may read the weights")
PY
