"""The snippets of docs/clients.md, each run with the client itself against the real vLLM: `make test-clients`.

What a client shows must be what the plain HTTP route answers: to one question, and streamed to a second one, which
goes on with the first answer as that client keeps it.
"""

import functools
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.checks import wait_for
from support.nursery import Nursery
from support.programs import ROOT
from support.serving import Home, Served, ask, free_port, served

from lockstep.settings.schema import Sampling

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = ROOT / "docs/clients.md"
HERE = Path(__file__).parent
PYTHON = ROOT / ".venv-clients/bin/python"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.S | re.M)
FIRST, SECOND = "你是谁？", "再说一遍。"
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CITY = {"city": {"type": "string"}}
# The same tool as clients describe it: Pydantic AI, and LlamaIndex.
TOOLS: list[dict[str, Any]] = [
    WEATHER,
    WEATHER
    | {
        "parameters": {"additionalProperties": False, "properties": CITY, "required": ["city"], "type": "object"},
        "strict": True,
    },
    WEATHER
    | {
        "description": "weather(city: str) -> str\nThe weather in a city.",
        "parameters": {
            "properties": {"city": {"title": "City", "type": "string"}},
            "required": ["city"],
            "type": "object",
            "additionalProperties": False,
        },
        "strict": False,
    },
]
NO_SPACES = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
CHAT = "/v1/chat/completions"
needs_python = pytest.mark.skipif(not PYTHON.exists(), reason="make test-clients installs the clients")
needs_node = pytest.mark.skipif(
    not (HERE / "node_modules/ai").exists(), reason="make test-clients installs the clients"
)


def snippets(heading: str, document: Path = PAGE) -> list[tuple[str, str]]:
    """(language, text) of every block of code under a heading."""
    _, _, rest = document.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    return BLOCK.findall(rest.partition("\n## ")[0])


@pytest.fixture(scope="module")
def origin() -> str:
    """Of the page in the browser."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A tiny model that has learned one conversation by heart, so that its answers are texts."""
    folder = tmp_path_factory.mktemp("home")
    home = Home(folder)
    tiny.model(folder / "tiny")
    (folder / "tools.jinja").write_text(tiny.CHATML_TOOLS, encoding="utf-8")
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
    asked = [
        {"role": "user", "content": "北京天气？"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "晴"},
        {"role": "assistant", "content": "北京晴。"},
    ]
    turns = (("user", FIRST), ("assistant", "我叫小甲。"), ("user", SECOND), ("assistant", "小甲，请记住！"))
    talk = [{"role": role, "content": text} for role, text in turns]
    learned: list[dict[str, Any]] = [{"messages": talk}]
    learned += [{"messages": asked, "tools": [{"type": "function", "function": tool}]} for tool in [*TOOLS, TOOLS[1]]]
    with tiny.rows(folder / "rows.jsonl", 40).open("a", encoding="utf-8") as stream:
        stream.writelines([json.dumps(row, ensure_ascii=False) + "\n" for row in learned] * 40)
    data = ("--data.drop", "garbled", "--data.template", str(folder / "tools.jinja"))
    learning = ("--train.max_steps", "400", "--train.learning_rate", "5e-3", "--train.gradient_accumulation_steps", "1")
    with Nursery(folder) as nursery:
        nursery.finish("00_download_model.py", *home.words)
        nursery.finish("01_data_collator.py", *home.words, *data)
        nursery.finish("02_train_qlora.py", *home.words, "--method", "full", *learning)
        nursery.finish("03_merge_lora.py", *home.words)
    return home


@pytest.fixture(scope="module")
def server(home: Home, origin: str) -> Iterator[Served]:
    words = ("--serve.allowed_origins", origin, "--serve.vllm_args", json.dumps(NO_SPACES))
    with served(home, *words) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Served) -> str:
    """The server's address, without /v1. Its run is `r`."""
    return server.url


def put(url: str, snippet: str) -> str:
    """A snippet with the test's own address and model."""
    assert "127.0.0.1:8000" in snippet and "demo" in snippet
    return re.sub(r"(?<=[\"/=])demo(?=[\",])", "r", snippet.replace("http://127.0.0.1:8000", url))


def plain(url: str, *turns: str, **fields: Any) -> str:
    """What the HTTP route answers; turns are of user and assistant."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    status, answer = ask(url + CHAT, {"model": "r", "messages": messages, "temperature": 0} | fields)
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def conversation(url: str) -> str:
    """What each snippet of two questions shows."""
    first = plain(url, FIRST)
    second = plain(url, FIRST, first, SECOND)
    assert "小甲" in first and "小甲" in second and first != second
    return f"{first}\n{second}"


def shown(command: list[str], folder: Path) -> str:
    """What a program prints; it has no proxy, no key and no network but this machine's."""
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "HOME": str(folder), "PYTHONUTF8": "1"}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def python(snippet: str, folder: Path, program: Path = PYTHON) -> str:
    (folder / "ask.py").write_text(snippet, encoding="utf-8")
    return shown([str(program), "ask.py"], folder).rstrip("\n")


def node(snippet: str, folder: Path) -> str:
    (folder / "node_modules").symlink_to(HERE / "node_modules")
    (folder / "ask.mjs").write_text(snippet, encoding="utf-8")
    return shown(["node", "ask.mjs"], folder).rstrip("\n")


@needs_python
@pytest.mark.parametrize(
    ("client", "place"),
    [
        ("OpenAI SDK for Python", 0),
        ("OpenAI SDK for Python", 1),
        ("Anthropic SDK for Python", 0),
        ("LangChain", 0),
        ("LiteLLM", 0),
        ("LlamaIndex", 0),
        ("Pydantic AI", 0),
    ],
)
def test_a_client_in_python(client: str, place: int, url: str, conversation: str, tmp_path: Path) -> None:
    language, snippet = snippets(client)[place]
    assert language == "python" and python(put(url, snippet), tmp_path) == conversation


def test_our_own_openai_sdk(url: str, conversation: str, tmp_path: Path) -> None:
    snippet = snippets("OpenAI SDK for Python")[0][1]
    assert python(put(url, snippet), tmp_path, Path(sys.executable)) == conversation


@needs_python
@pytest.mark.parametrize("place", [0, 1, 3, 4, 5, 6])
def test_tools_in_python(place: int, url: str, tmp_path: Path) -> None:
    language, snippet = snippets("Tools")[place]
    lines = python(put(url, snippet), tmp_path).replace("'", '"').split("\n")
    assert language == "python" and lines == ['weather {"city": "北京"}', "北京晴。"]


@needs_node
@pytest.mark.parametrize("place", [2, 7])
def test_tools_in_node(place: int, url: str, tmp_path: Path) -> None:
    lines = node(put(url, snippets("Tools")[place][1]), tmp_path).replace('": "', '":"').split("\n")
    assert lines == ['weather {"city":"北京"}', "北京晴。"]


@needs_node
@pytest.mark.parametrize(("client", "place"), [("OpenAI SDK for Node", 0), ("Vercel AI SDK", 0), ("Vercel AI SDK", 1)])
def test_a_client_in_node(client: str, place: int, url: str, conversation: str, tmp_path: Path) -> None:
    language, snippet = snippets(client)[place]
    assert language == "js" and node(put(url, snippet), tmp_path) == conversation


@needs_python
def test_twenty_prompts_in_one_request(url: str, tmp_path: Path) -> None:
    lines = python(put(url, snippets("LangChain")[1][1]), tmp_path).split("\n")
    prompts = [f"{number} tea" for number in range(20)]
    body = {"model": "r", "prompt": prompts, "temperature": 0, "max_tokens": 8}
    status, answer = ask(f"{url}/v1/completions", body)
    assert status == 200 and lines == [repr(choice["text"]) for choice in answer["choices"]]


@needs_python
def test_instructor(url: str, tmp_path: Path) -> None:
    assert python(put(url, snippets("Instructor")[0][1]), tmp_path) in ("calm", "angry")


def lm_eval(place: int, task: str, rows: list[dict[str, Any]], url: str, folder: Path, tokenizer: Path) -> Any:
    """The samples of a task of the page, on rows of ours."""
    (_, description), (language, command) = snippets("lm-evaluation-harness")[place : place + 2]
    (folder / f"{task}.yaml").write_text(description, encoding="utf-8")
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = put(url, command.replace("outputs/demo/merged", str(tokenizer)))
    assert language == "bash"
    shown(["bash", "-c", words.replace("lm_eval", f"{PYTHON.parent}/lm_eval", 1)], folder)
    (file,) = (folder / "answers").rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@needs_python
def test_lm_eval(url: str, home: Home, tmp_path: Path) -> None:
    answer = plain(url, FIRST)
    rows: list[dict[str, Any]] = [{"question": FIRST, "answer": answer}, {"question": FIRST, "answer": "another"}]
    samples = lm_eval(0, "who", rows, url, tmp_path, home.run / "merged")
    assert [sample["filtered_resps"] for sample in samples] == [[answer.strip()]] * 2
    assert [sample["exact_match"] for sample in samples] == [1.0, 0.0]
    rows = [{"question": FIRST, "choices": [answer, "weather"], "answer": right} for right in (0, 1)]
    samples = lm_eval(2, "choose", rows, url, tmp_path, home.run / "merged")
    assert [sample["acc"] for sample in samples] == [1.0, 0.0]


def test_curl(url: str, tmp_path: Path) -> None:
    ((language, command),) = snippets("curl")
    answer = json.loads(shown(["bash", "-c", put(url, command)], tmp_path))
    assert language == "bash" and answer["choices"][0]["message"]["content"] == plain(url, FIRST)


def test_the_line_that_the_server_prints(home: Home, server: Served, tmp_path: Path) -> None:
    assert server.supervisor.stdout
    line = next(line for line in server.supervisor.stdout if line.startswith("  curl "))
    body = json.loads(shlex.split(line)[-1])
    assert body.items() >= Sampling().model_dump(exclude_none=True).items()
    (asked,) = body["messages"]
    assert asked["content"] in (home.folder / "rows.jsonl").read_text(encoding="utf-8").replace('", "input": "', "\n")
    answer = json.loads(shown(["bash", "-c", line], tmp_path))
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.skipif(not shutil.which("java"), reason="no java is installed")
def test_java(url: str, tmp_path: Path) -> None:
    ((language, snippet),) = snippets("Java")
    (tmp_path / "Ask.java").write_text(put(url, snippet), encoding="utf-8")
    utf8 = ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8"]
    answer = json.loads(shown(["java", *utf8, "Ask.java"], tmp_path))
    assert language == "java" and answer["choices"][0]["message"]["content"] == plain(url, FIRST)


def test_a_page_in_a_browser(url: str, origin: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium is installed")
    language, snippet = next(block for block in snippets("A page in a browser") if block[0] == "html")
    (tmp_path / "index.html").write_text(put(url, snippet), encoding="utf-8")
    page_of = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    address = ("127.0.0.1", int(origin.rpartition(":")[2]))
    with http.server.ThreadingHTTPServer(address, page_of) as pages, playwright.sync_playwright() as tool:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        browser = tool.chromium.launch(executable_path=chromium)
        page = browser.new_page()
        page.goto(origin)
        wait_for(lambda: page.inner_text("#answer").strip() == plain(url, FIRST).strip())
        other = browser.new_page()
        with other.expect_console_message(lambda message: "blocked by CORS policy" in message.text):
            other.goto(origin.replace("127.0.0.1", "localhost"))  # another origin, which the server was not told
        assert other.inner_text("#answer") == ""
        browser.close()
        pages.shutdown()
    assert language == "html"


def test_both_languages_show_the_same_snippets() -> None:
    chinese = PAGE.with_name("clients.zh-CN.md")
    assert BLOCK.findall(chinese.read_text(encoding="utf-8")) == BLOCK.findall(PAGE.read_text(encoding="utf-8"))
