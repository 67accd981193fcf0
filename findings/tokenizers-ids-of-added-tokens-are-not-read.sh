#!/usr/bin/env bash
# Library: tokenizers 0.23.3, with transformers 5.19.0
# Expected: an added token has the id that tokenizer.json gives it, as every entry of added_tokens states one
# Happens: where the vocabulary proper does not hold the token, that id is not read: the tokens get the next free
#   ids, in the order of the list. With one of them taken off the list, all after it move up by one, and a model
#   reads the embedding of another token from there on. Neither library says a word, and added_tokens_decoder in
#   tokenizer_config.json, which states the ids once more, changes nothing
# Output seen:
#   file as saved             <user> 256, <system> 257, <end> 258: '<end>' is [258]
#   file without <system>     <user> 256, <end> 258 by the file, 257 as loaded: '<end>' is [257]
#   the same by transformers  '<end>' is [257]
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

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

TOKENS = ["<user>", "<system>", "<end>"]
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
whole = Tokenizer(models.BPE(vocab={letter: id_ for id_, letter in enumerate(letters)}, merges=[]))
whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
whole.add_special_tokens(TOKENS)


def stated(content):
    """What the file says."""
    return {token["content"]: token["id"] for token in content["added_tokens"]}


content = json.loads(whole.to_str())
ids, saved = stated(content), Tokenizer.from_str(whole.to_str())
content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<system>"]
cut = Tokenizer.from_str(json.dumps(content))

folder = Path(tempfile.mkdtemp())
(folder / "tokenizer.json").write_text(json.dumps(content))
again = {token["id"]: {"content": token["content"], "special": True} for token in content["added_tokens"]}
described = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": again}
(folder / "tokenizer_config.json").write_text(json.dumps(described))
wrapped = AutoTokenizer.from_pretrained(folder)

before, after = saved.encode("<end>").ids, cut.encode("<end>").ids
print(f"file as saved             {', '.join(f'{token} {id_}' for token, id_ in ids.items())}: '<end>' is {before}")
print(f"file without <system>     <user> {cut.token_to_id('<user>')}, <end> {stated(content)['<end>']} by the file, "
      f"{cut.token_to_id('<end>')} as loaded: '<end>' is {after}")
print(f"the same by transformers  '<end>' is {wrapped.encode('<end>')}")
if before != [ids["<end>"]] or stated(content)["<end>"] in (*after, *wrapped.encode("<end>")):
    sys.exit("changed: added tokens have the ids that the file gives them")
print("as seen: the ids of added tokens are not read")
PY
