#!/usr/bin/env bash
# Library: openai 3.54.0
# Expected: a streamed chat answer that ends without finish_reason and without [DONE], because server or proxy
#   went away, raises an error
# Happens: where the response has neither a length nor chunks and ends with the connection, as HTTP allows,
#   the loop over the stream ends normally: a text cut in its middle looks like an answer. So does
#   chat.completions.stream(): its final completion is made of what there is, with finish_reason None. Only
#   who looks for a finish_reason notices
# Output seen:
#   create(stream=True): 'Turn it off, and ', no error, finish_reason None
#   stream(): 'Turn it off, and ', no error, finish_reason None
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV_CACHE:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
packages() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
packages openai==3.54.0

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 TQDM_DISABLE=1 NO_PROXY=127.0.0.1
"$venv/bin/python" -I - <<'PY'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import OpenAI


class Server(BaseHTTPRequestHandler):
    """Sends three pieces of an answer, and is gone before the rest."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in ("Turn ", "it ", "off, and "):
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.close_connection = True

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
question = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
try:
    chunks = list(client.chat.completions.create(**question, stream=True))
    with client.chat.completions.stream(**question) as stream:
        final = stream.get_final_completion().choices[0]
except Exception as error:
    sys.exit(f"changed: a cut stream raises {type(error).__name__}")
print(f"create(stream=True): {''.join(c.choices[0].delta.content for c in chunks)!r}, no error, "
      f"finish_reason {chunks[-1].choices[0].finish_reason}")
print(f"stream(): {final.message.content!r}, no error, finish_reason {final.finish_reason}")
print("as seen: a cut answer ends like a whole one")
PY
