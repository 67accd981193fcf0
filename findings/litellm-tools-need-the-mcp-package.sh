#!/usr/bin/env bash
# Library: litellm 1.106.12, installed as `pip install litellm`, with openai 2.54.0
# Expected: completion() takes tools in OpenAI's form with the packages that its own installation brings, as it does
#   everything else of a chat request
# Happens: with tools it raises, before anything is sent, as the package mcp is missing, which only extras install, and
#   which has nothing to do with tools in OpenAI's form; without tools the same call is answered
# Output seen:
#   without tools: answered 'Hello'
#   with tools: ModuleNotFoundError, No module named 'mcp'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages litellm==1.106.12 openai==2.54.0

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1 NO_PROXY=127.0.0.1
export LITELLM_LOCAL_MODEL_COST_MAP=True
"$venv/bin/python" -I - <<'PY'
import json
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

logging.disable(logging.CRITICAL)

import litellm  # noqa: E402 - its first lines log


class Server(BaseHTTPRequestHandler):
    """Answers every chat request with one word."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
TOOL = {"type": "function", "function": {
    "name": "weather", "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}}
outcomes = {}
for name, more in (("without tools", {}), ("with tools", {"tools": [TOOL]})):
    try:
        answer = litellm.completion(
            model="openai/m", api_base=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", num_retries=0,
            messages=[{"role": "user", "content": "?"}], **more,
        )
        outcomes[name] = f"answered {answer.choices[0].message.content!r}"
    except Exception as error:
        cause = error
        while not isinstance(cause, ModuleNotFoundError) and (cause.__cause__ or cause.__context__):
            cause = cause.__cause__ or cause.__context__
        outcomes[name] = f"{type(cause).__name__}, {str(cause)[:100]}"
    print(f"{name}: {outcomes[name]}")
if outcomes["without tools"] != "answered 'Hello'" or "No module named 'mcp'" not in outcomes["with tools"]:
    sys.exit("changed: a plain installation takes tools, or takes no chat at all")
print("as seen: tools need a package that the installation does not bring")
PY
