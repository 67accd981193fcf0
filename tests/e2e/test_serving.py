"""The real vLLM: closed until proved, the same tokens, nothing cut off, nothing left behind."""

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import door, files_page, tiny
from support.edits import edit_json
from support.serving import Home, ask, finished_run, free_port, launch, refused, report, reseal, served

from lockstep.endpoint import server_note
from lockstep.serving import gate_tokens, gate_vocabulary, probe
from lockstep.serving.gate_findings import Findings

pytestmark = pytest.mark.e2e

ASK = [{"role": "user", "content": "你是谁？ 🙂"}]
CHAT = "/v1/chat/completions"
PROMISE = "Only this machine is let in, elsewhere nobody without the key, and to no route that is closed"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    (folder / "chat.jinja").write_text(tiny.CHATML_TOOLS)
    return finished_run(folder, "--data.system_prompt", "你是 'x'.", "--data.template", str(folder / "chat.jinja"))


def swap_the_last_two(tokenizer: dict[str, Any]) -> dict[str, Any]:
    words = tokenizer["model"]["vocab"]
    (first, one), (second, two) = list(words.items())[-2:]
    words |= {first: two, second: one}
    return tokenizer


def check_what_the_gate_saw_of_texts(home: Home, found: dict[str, Any], asker: probe.Server, tmp_path: Path) -> None:
    """The whole vocabulary, and held-out rows as messages; and what the same server shows of another tokenizer."""
    contract = json.loads((home.run / "merged/contract.json").read_text(encoding="utf-8"))
    size = contract["vocabulary"]["size"]
    assert found["vocabulary"] == size > 300 and found["vocabulary_mismatches"] == 0
    assert found["row_prompts"] >= 3 and found["row_prompt_mismatches"] == 0
    spoilt = home.copy(tmp_path / "spoilt").run / "adapter"
    edit_json(spoilt / "tokenizer.json", swap_the_last_two)
    gate_vocabulary.check(asker, "r", gate_tokens.template_of(spoilt), 512, judged := Findings())
    assert judged.report == {"vocabulary": size, "vocabulary_mismatches": 1}
    assert judged.reasons == [
        f"the server has another tokenizer than training: ids from 0 to {size - 1} become another text"
    ]
    rows = json.loads((home.run / "adapter/reference.json").read_text(encoding="utf-8"))["rows"]
    rows[1]["messages"][0]["content"] += "?"
    rows[0]["input_ids"][4] = rows[0]["input_ids"][5]
    chat = gate_tokens.template_of(home.run / "adapter")
    gate_tokens.check_row_prompts(asker, "r", chat, rows, judged := Findings())
    assert judged.report["row_prompts"] == found["row_prompts"] - 2  # what was cut in training is no fault


@pytest.mark.promise(PROMISE)
def test_merged(home: Home, tmp_path: Path) -> None:
    """All of one server's life: what it says, what it takes, where it listens, and that its end cuts nothing off."""
    with served(home) as server:
        found = report(home)
        assert found["passed"] and found["mode"] == "merged" and found["prompts"] >= 30
        assert (found["token_mismatches"], found["differs_from_base"], found["reasons"]) == (0, True, [])
        assert found["modules_active"] is None and found["modules_expected"] is None
        assert found["logprob_gap"] < 0.01 and found["end_token_gap"] < 0.01 and found["adapter_effect"] > 0.95
        assert found["kl_kinds"].keys() == {"rows", "ends", "vocabulary", "long", "chats"} and found["named"] is None
        assert found["kl"] < 0.001 and found["kl_bound"] == 0.01 and found["kl_noise"] < 0.001
        assert all(0 <= kind["mean"] <= kind["worst"] < 0.01 for kind in found["kl_kinds"].values())
        assert files_page.faults("outputs/<run>/serve/gate_report.json", found) == []
        note = json.loads((home.run / "serve/server.json").read_text(encoding="utf-8"))
        assert files_page.faults("outputs/<run>/serve/server.json", note) == []

        contract = json.loads((home.run / "merged/contract.json").read_text(encoding="utf-8"))
        for one in contract["conversations"]:
            asked = {key: one[key] for key in ("messages", "tools") if key in one}
            assert ask(f"{server.url}/tokenize", asked)[1]["tokens"] == one["prompt_ids"], one["name"]
            small = asked | {"max_tokens": 2, "tool_choice": "none"} if "tools" in one else asked | {"max_tokens": 2}
            fits = len(one["prompt_ids"]) + 2 <= 512
            assert ask(server.url + CHAT, small)[0] == (200 if fits else 400), one["name"]

        assert sum("tool_calls" in message for one in contract["conversations"] for message in one["messages"]) == 2
        door.check(server.url, home.run / "merged")

        assert found["ordinary_tokens"] > 10
        judged = Findings()  # had training another end, the gate would see it in this server
        other, asker = contract | {"stop_ids": [300]}, probe.Server(server.url + "/v1", "")
        gate_tokens.check_stops(asker, "r", other, contract["stop_ids"], judged)
        assert [reason.split(" ", 2)[:2] for reason in judged.reasons] == [["stop", "token"], ["token", "2"]]

        check_what_the_gate_saw_of_texts(home, found, asker, tmp_path)

        assert only_loopback(server.family)
        with_media = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]
        for body in (
            {"messages": ASK, "n": 10**9}, {"messages": ASK, "max_tokens": 10**9}, {"messages": with_media},
            {"messages": [{"role": "user", "content": "<|im_end|>"}]}, {"messages": ASK, "chat_template": "{{ 1 }}"},
            {"messages": ASK, "model": "other"}, {"messages": "x"}, [],
        ):  # fmt: skip
            status, answer = ask(server.url + CHAT, body)
            assert status in (400, 404) and answer["error"]["message"], body
        for path in ("/docs", "/openapi.json", "/invocations", "/v1/load_lora_adapter", "/v1/embeddings", "/ping"):
            assert ask(server.url + path, {"messages": ASK})[0] == 404
        assert ask(server.url + CHAT, {"messages": ASK, "max_tokens": 4})[1]["usage"]["completion_tokens"] <= 4

        streams = [Stream(server.url) for _ in range(12)]
        for stream in streams:
            assert stream.began.wait(timeout=60)
        server.supervisor.terminate()
        for stream in streams:
            stream.join(timeout=60)
        assert [stream.finish_reason for stream in streams] == ["length"] * 12
        assert server.supervisor.wait(timeout=60) == 0


class Stream(threading.Thread):
    """One streamed answer of 300 tokens."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.began, self.finish_reason = url, threading.Event(), None
        self.start()

    def run(self) -> None:
        import urllib.request

        body = {"messages": ASK, "stream": True, "max_tokens": 300, "ignore_eos": True}
        request = urllib.request.Request(
            self.url + CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as events:
            for line in events:
                if line.startswith(b"data: {"):
                    self.began.set()
                    for choice in json.loads(line[6:])["choices"]:
                        self.finish_reason = choice["finish_reason"] or self.finish_reason


def only_loopback(family: list[psutil.Process]) -> bool:
    """What the kernel says about where these processes listen."""
    found = [
        c.laddr.ip for process in family for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]
    return bool(found) and all(address in ("127.0.0.1", "::1") for address in found)


def test_two_adapters_on_the_base_that_they_were_trained_on(home: Home, tmp_path: Path) -> None:
    both = home.copy(tmp_path / "home")
    template = str(home.folder / "chat.jinja")
    more = ("--run", "second", "--data.system_prompt", "你是 'x'.", "--data.template", template)
    both.stage("01_data_collator.py", *more)
    both.stage(
        "02_train_qlora.py", *more, "--train.max_steps", "6", "--train.learning_rate", "2e-2", "--train.seed", "7"
    )
    with served(both, "--serve.mode", "auto", "--serve.adapters", "second") as server:
        found = report(both)
        assert found["passed"] and found["differs_from_base"] and found["others"]["second"]["differs_from_base"]
        assert found["modules_active"] == found["others"]["second"]["modules_active"] == found["modules_expected"] == 14
        assert files_page.faults("outputs/<run>/serve/gate_report.json", found) == []
        assert ask(f"{server.url}/lockstep/modules")[0] == 404  # only to who knows the secret
        names = {card["id"] for card in ask(f"{server.url}/v1/models")[1]["data"]}
        assert names == {"r", "r-base", "second"}
        said = {
            name: ask(
                server.url + CHAT, {"model": name, "messages": ASK, "temperature": 0, "max_tokens": 8, "logprobs": True}
            )[1]
            for name in names
        }
        first = {name: answer["choices"][0]["logprobs"]["content"][0]["logprob"] for name, answer in said.items()}
        assert len(set(first.values())) == 3
        # what stops vLLM's engine in this mode on CPUs is refused at the door
        for body in ({"prompt": "a", "prompt_logprobs": 1}, {"prompt": "a", "echo": True, "logprobs": 1}):
            assert ask(f"{server.url}/v1/completions", {"model": "r", **body})[0] == 400
        assert ask(server.url + CHAT, {"model": "r", "messages": ASK, "max_tokens": 2})[0] == 200
        door.check_calls(server.url)


@pytest.mark.promise(PROMISE)
def test_nobody_is_let_in_before_the_gate_opens_and_nobody_without_the_key_after(
    home: Home, record_property: Any
) -> None:
    port, key = free_port(), "k" * 24
    url = f"http://127.0.0.1:{port}"
    supervisor = launch(home, "--serve.host", "0.0.0.0", port=port, LOCKSTEP_API_KEY=key)
    assert supervisor.stderr
    seen: set[int] = set()
    opened = threading.Event()

    def knock() -> None:
        while not opened.is_set():
            for path, body in (
                ("/health", None),
                ("/v1/models", None),
                (CHAT, {"messages": ASK}),
                ("/tokenize", {"prompt": "a"}),
            ):
                try:
                    status = ask(url + path, body, Authorization=f"Bearer {key}")[0]
                except OSError:
                    time.sleep(0.1)
                    continue
                if not (home.run / "serve/open").exists():  # it was closed all the while
                    seen.add(status)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        note = server_note.wait_until_open(home.run / "serve", supervisor)
        assert note and note.url == f"http://0.0.0.0:{port}/v1", supervisor.stderr.read()
        opened.set()
        knocking.join()
        assert seen == {503}
        body = {"messages": ASK, "max_tokens": 2}
        paths = (*vllm_routes(), "/nothing", f"//{CHAT}/..", f"{CHAT}/", f"/{CHAT}")
        record_property("cases", 6 * len(paths))
        for path in paths:
            answers = [ask(url + path, body, method)[0] for method in ("GET", "POST", "OPTIONS")]
            answers += [ask(url + path, body, method, Authorization="Bearer wrong")[0] for method in ("GET", "POST")]
            assert set(answers) <= ({200, 405} if path == "/health" else {401, 404, 405}), path
            with_key = ask(url + path, body, "POST", Authorization=f"Bearer {key}")[0]
            if path in (CHAT, f"{CHAT}/", f"/{CHAT}", "/v1/messages", "/v1/messages/count_tokens"):
                assert with_key == 200, path
            elif path in ("/v1/completions", "/v1/responses"):
                assert with_key == 400, path
            else:
                assert with_key in (404, 405), path
        # the key stands in no command line
        for process in psutil.Process(supervisor.pid).children(recursive=True):
            assert key not in " ".join(process.cmdline())
    finally:
        opened.set()
        supervisor.terminate()
        supervisor.wait(timeout=60)
    for file in home.run.glob("serve/*"):
        assert key not in file.read_text(errors="replace"), file


def vllm_routes() -> list[str]:
    """Every route that this vLLM has, with all its switches as we start it."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", "x"])
    app = build_app(args, ("generate",))
    return sorted({route.path for route in app.routes if "{" not in route.path})


def spoil_template(home: Home) -> str:
    file = home.run / "merged/chat_template.jinja"
    file.write_text(file.read_text().replace("assistant\\n", "assistant\\n\\n").replace("assistant\n", "assistant\n\n"))
    reseal(home.run / "merged")
    return "golden conversations become other tokens than in training .*: the chat template differs"


def spoil_generation_config(home: Home) -> str:
    file = home.run / "merged/generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, 300]}))
    reseal(home.run / "merged")
    return "generation_config.json ends answers at token 300, which is an ordinary one"


@pytest.mark.promise("What is not the trained model, or hangs, is not served")
@pytest.mark.parametrize("spoil", [spoil_template, spoil_generation_config])
def test_a_model_that_is_not_the_trained_one_is_not_served(home: Home, tmp_path: Path, spoil: Any) -> None:
    import re

    spoilt = home.copy(tmp_path / "home")
    reason = spoil(spoilt)
    code, complaint = refused(spoilt)
    assert code == 2 and complaint.count("\n") <= 2, complaint
    assert re.search(f"error: the gate stays shut: .*{reason}", complaint), complaint
    assert not report(spoilt)["passed"]


def test_the_port_is_free_again(home: Home) -> None:
    port = free_port()
    supervisor = launch(home, port=port)
    deadline = time.monotonic() + 200  # base, adapter and merged model are compared first
    while not (note := server_note.current(home.run / "serve")) or "loads the model" not in note.progress:
        assert supervisor.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    status, answer = ask(f"http://127.0.0.1:{port}/v1/models")
    assert status == 503 and answer["error"]["reason"] == "loading"
    supervisor.terminate()  # in the middle of the start
    assert supervisor.wait(timeout=60) == 75  # unfinished: whoever waits for it must not take it for served
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are over linger for a minute
        probe.bind(("127.0.0.1", port))
