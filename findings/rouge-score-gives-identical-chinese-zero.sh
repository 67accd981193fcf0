#!/usr/bin/env bash
# Library: rouge-score 0.1.2
# Expected: a text compared with itself scores 1, in any script; two different answers score less
# Happens: the default tokenizer drops every character but a-z and 0-9. Chinese has none of them left, so that
#   identical answers score 0. Worse, with a number in both, different answers score 1, since the number is
#   all that is compared
# Output seen:
#   identical English: ROUGE-L 1.0
#   identical Chinese: ROUGE-L 0.0
#   opposite answers: ROUGE-L 1.0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages rouge-score==0.1.2

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - <<'PY'
import sys

from rouge_score.rouge_scorer import RougeScorer

pairs = {
    "identical English": ("the weather is fine", "the weather is fine"),
    "identical Chinese": ("今天天气很好", "今天天气很好"),
    "opposite answers": ("第1题：答案是对的", "第1题：完全说错了"),
}
scorer = RougeScorer(["rougeL"])
scores = {name: scorer.score(*pair)["rougeL"].fmeasure for name, pair in pairs.items()}
for name, score in scores.items():
    print(f"{name}: ROUGE-L {score:.1f}")
if list(scores.values()) != [1, 0, 1]:
    sys.exit("changed: Chinese text now counts")
print("as seen: Chinese counts for nothing")
PY
