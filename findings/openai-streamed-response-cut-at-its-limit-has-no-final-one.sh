#!/usr/bin/env bash
# Library: openai 3.54.0
# Expected: an answer that ends at max_output_tokens is the same object whether it is streamed or not: status
#   incomplete, with the text so far. The specification of /v1/responses ends such a stream with response.incomplete
# Happens: responses.create() returns it; responses.stream() yields its event, and get_final_response() then raises
#   RuntimeError, as only response.completed counts as an end. What was generated, and its usage, are in the last event
#   alone. chat.completions.stream() raises as well, although nothing is to be parsed, but its LengthFinishReasonError
#   carries the completion
# Output seen:
#   responses.create()             status incomplete, text 'Turn it off'
#   responses.stream()             last event response.incomplete, text 'Turn it off'
#   get_final_response()           RuntimeError: Didn't receive a `response.completed` event.
#   chat get_final_completion()    LengthFinishReasonError, whose completion holds 'Turn it off'
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

from openai import LengthFinishReasonError, OpenAI

TEXT = "Turn it off"
PART = {"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "incomplete", "content": [PART]}
CUT = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "incomplete", "output": [ITEM],
    "incomplete_details": {"reason": "max_output_tokens"}, "parallel_tool_calls": True, "tool_choice": "auto",
    "tools": [], "error": None, "instructions": None, "metadata": {},
}
BEGUN = CUT | {"status": "in_progress", "output": [], "incomplete_details": None}
PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
EVENTS = [
    {"type": "response.created", "response": BEGUN},
    {"type": "response.output_item.added", "output_index": 0, "item": ITEM | {"status": "in_progress", "content": []}},
    {"type": "response.content_part.added", **PLACE, "part": PART | {"text": ""}},
    {"type": "response.output_text.delta", **PLACE, "delta": TEXT, "logprobs": []},
    {"type": "response.output_text.done", **PLACE, "text": TEXT, "logprobs": []},
    {"type": "response.content_part.done", **PLACE, "part": PART},
    {"type": "response.output_item.done", "output_index": 0, "item": ITEM},
    {"type": "response.incomplete", "response": CUT},
]
CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHUNKS = [
    CHUNK | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": TEXT}, "finish_reason": None}]},
    CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
]


class Server(BaseHTTPRequestHandler):
    """Sends an answer that was cut at its limit, on both routes, streamed or not."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if asked.get("stream") else "application/json")
        self.end_headers()
        if not asked.get("stream"):
            self.wfile.write(json.dumps(CUT).encode())
        elif self.path == "/v1/responses":
            for number, event in enumerate(EVENTS):
                data = json.dumps(event | {"sequence_number": number})
                self.wfile.write(f"event: {event['type']}\ndata: {data}\n\n".encode())
        else:
            self.wfile.write("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in CHUNKS).encode())
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
whole = client.responses.create(model="m", input="?", max_output_tokens=4)
print(f"{'responses.create()':30} status {whole.status}, text {whole.output_text!r}")
raised = ""
with client.responses.stream(model="m", input="?", max_output_tokens=4) as stream:
    last = list(stream)[-1]
    print(f"{'responses.stream()':30} last event {last.type}, text {last.response.output_text!r}")
    try:
        print(f"{'get_final_response()':30} status {stream.get_final_response().status}")
    except RuntimeError as error:
        raised = str(error)
        print(f"{'get_final_response()':30} RuntimeError: {raised}")
carried = None
with client.chat.completions.stream(
    model="m", messages=[{"role": "user", "content": "?"}], max_completion_tokens=4
) as chat:
    try:
        chat.get_final_completion()
    except LengthFinishReasonError as error:
        carried = error.completion.choices[0].message.content
        print(f"{'chat get_final_completion()':30} LengthFinishReasonError, whose completion holds {carried!r}")
regular = (whole.status, whole.output_text, last.response.output_text, carried)
if regular != ("incomplete", TEXT, TEXT, TEXT) or "response.completed" not in raised:
    sys.exit("changed: a streamed response that was cut at its limit has a final one, or other parts differ")
print("as seen: the final response of a cut stream cannot be had")
PY
