#!/usr/bin/env bash
# Library: datasets 5.2.0
# Expected: load_dataset("json", features=…) with a column declared as Value("string") gives the text of the
#   file
# Happens: the JSON reader takes a column in which every text looks like a time for timestamps before the
#   features apply, and the cast back writes them in another form: "2024-01-01T10:00:00+08:00" becomes
#   "2024-01-01 02:00:00", moved to UTC and without its zone. One row that is no date, and all texts stay.
#   Dataset.from_list keeps them
# Output seen:
#   in the file:             ['2024-01-01T10:00:00+08:00', '2024-02-03T10:00:00+08:00']
#   load_dataset:            ['2024-01-01 02:00:00', '2024-02-03 02:00:00']
#   beside one other text:   ['2024-01-01T10:00:00+08:00', '2024-02-03T10:00:00+08:00']
#   Dataset.from_list:       ['2024-01-01T10:00:00+08:00', '2024-02-03T10:00:00+08:00']
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages datasets==5.2.0

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - <<'PY'
import json
import sys
import tempfile
from pathlib import Path

from datasets import Dataset, Features, Value, disable_progress_bars, load_dataset

disable_progress_bars()
TEXTS = ["2024-01-01T10:00:00+08:00", "2024-02-03T10:00:00+08:00"]
AS_TEXT = Features({"answer": Value("string")})


def loaded(texts):
    file = Path(tempfile.mkdtemp()) / "rows.jsonl"
    file.write_text("".join(json.dumps({"answer": text}) + "\n" for text in texts))
    return load_dataset("json", data_files=str(file), split="train", features=AS_TEXT)["answer"][:]


alone, mixed = loaded(TEXTS), loaded([*TEXTS, "tomorrow"])
in_memory = Dataset.from_list([{"answer": text} for text in TEXTS], features=AS_TEXT)["answer"][:]
print(f"in the file:             {TEXTS}")
print(f"load_dataset:            {alone}")
print(f"beside one other text:   {mixed[:2]}")
print(f"Dataset.from_list:       {in_memory}")
if alone == TEXTS or mixed[:2] != TEXTS or in_memory != TEXTS:
    sys.exit("changed: text that looks like a date is left as it is")
print("as seen: a declared string is rewritten as a time")
PY
