#!/usr/bin/env bash
# Library: transformers 5.19.0, with tokenizers 0.23.3
# Expected: AutoTokenizer uses the tokenizer.json of the folder, whatever class tokenizer_config.json names:
#   text survives encoding and decoding as it does with the tokenizers library alone
# Happens: for some classes, LlamaTokenizer among them, transformers 5 takes vocabulary and merges out of
#   tokenizer.json and builds pre-tokenizer and decoder anew, as that class has them. With a byte-level
#   vocabulary, as in many copies of models whose config still says LlamaTokenizerFast, spaces and Chinese
#   then vanish. There is no warning
# Output seen:
#   tokenizers alone         'Be brief. 你是谁？'
#   PreTrainedTokenizerFast  'Be brief. 你是谁？'
#   LlamaTokenizerFast       'Bebrief.'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages transformers==5.19.0 tokenizers==0.23.3

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
"$venv/bin/python" -I - <<'PY'
import json
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

TEXT = "Be brief. 你是谁？"
own = Tokenizer(models.BPE())
own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
own.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False)
own.train_from_iterator([TEXT], trainer)


def through(name):
    folder = Path(tempfile.mkdtemp())
    own.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    described = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False))


texts = {"tokenizers alone": own.decode(own.encode(TEXT).ids)}
for name in ("PreTrainedTokenizerFast", "LlamaTokenizerFast"):
    texts[name] = through(name)
for name, text in texts.items():
    print(f"{name:24} {text!r}")
if texts["LlamaTokenizerFast"] == TEXT or texts["PreTrainedTokenizerFast"] != TEXT:
    sys.exit("changed: the class named in the config no longer decides what becomes of the text")
print("as seen: the same tokenizer.json loses spaces and Chinese under another class name")
PY
