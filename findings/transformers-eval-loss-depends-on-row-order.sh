#!/usr/bin/env bash
# Library: transformers 5.19.0 (Trainer), with torch 2.13.0 (CPU), datasets 5.2.0 and accelerate 1.15.0
# Expected: eval_loss is a property of model and rows, so that sorting the rows or another eval batch size
#   changes nothing but rounding
# Happens: each batch's loss is a mean over its supervised tokens, and eval_loss the mean of these over the
#   rows. Where rows have answers of different lengths, a token counts more or less by the company it is
#   batched with: the same model on the same rows gets another loss, and another perplexity, after sorting or
#   with another batch size
# Output seen:
#   by hand, over all tokens    loss 2.3341, perplexity 10.32
#   batches of 4, as they come  loss 2.3341, perplexity 10.32
#   batches of 4, by length     loss 2.8571, perplexity 17.41
#   batches of 1                loss 2.8571, perplexity 17.41
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu transformers==5.19.0 numpy==2.3.5 accelerate==1.15.0 datasets==5.2.0

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - <<'PY'
import math
import sys
import tempfile

import torch
from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

torch.manual_seed(0)
shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2))
rows = []
for row in range(16):  # answers of 24 and of 4 tokens by turns; the long ones are easy to learn
    answer = [7] * 24 if row % 2 == 0 else torch.randint(3, 64, (4,)).tolist()
    prompt = torch.randint(3, 64, (32 - len(answer),)).tolist()
    rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})


def arguments(**options):
    return TrainingArguments(tempfile.mkdtemp(), use_cpu=True, report_to="none", disable_tqdm=True, **options)


def eval_loss(rows, size):
    options = arguments(per_device_eval_batch_size=size)
    trainer = Trainer(model, options, eval_dataset=Dataset.from_list(rows), data_collator=default_data_collator)
    trainer.remove_callback(PrinterCallback)
    return trainer.evaluate()["eval_loss"]


options = arguments(max_steps=20, learning_rate=3e-3, save_strategy="no", logging_strategy="no")
trainer = Trainer(model, options, train_dataset=Dataset.from_list(rows), data_collator=default_data_collator)
trainer.remove_callback(PrinterCallback)
trainer.train()
model.eval()
sums = [0.0, 0]
for row in rows:
    labels = torch.tensor(row["labels"])[1:]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
    sums[0] += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    sums[1] += int((labels != -100).sum())
by_length = sorted(rows, key=lambda row: row["labels"].count(-100))
losses = {
    "by hand, over all tokens": sums[0] / sums[1],
    "batches of 4, as they come": eval_loss(rows, 4),
    "batches of 4, by length": eval_loss(by_length, 4),
    "batches of 1": eval_loss(rows, 1),
}
for name, loss in losses.items():
    print(f"{name:27} loss {loss:.4f}, perplexity {math.exp(loss):.2f}")
if abs(losses["batches of 4, by length"] / losses["batches of 4, as they come"] - 1) < 0.05:
    sys.exit("changed: the order of the rows no longer changes eval_loss")
print("as seen: the order of the rows changes eval_loss")
PY
