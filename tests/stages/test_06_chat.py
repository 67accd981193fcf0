"""Stage 06 as a person uses it: in a real Chromium, against a small OpenAI-compatible server that takes its time."""

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from support import tiny
from support.chat_page import CHROMIUM, DIRECT, Person, shown, stand_in
from support.checks import wait_for
from support.misbehaving import Handler, Server
from support.serving import free_port

from lockstep.data import layouts
from lockstep.data.records import Record
from lockstep.prompts import template_source
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed")

KEY = "sk-0123456789abcdef-secret"
LONG = "春有百花秋有月，夏有凉风冬有雪；若无闲事挂心头，便是人间好时节。" * 30
BUILT_IN = "你是甄嬛。\nReply <b>briefly</b>."
# Each label in the settings, and the pixels between its words and the box that it labels.
LABELS = """() => [...document.querySelectorAll("#settings .block:not(:has(.block))")].flatMap((block) => {
  const label = block.querySelector("[data-testid=block-info]");
  const input = block.querySelector(".tab-like-container, textarea, input:not([type=radio]), label:has(input[type=radio])");
  if (!label || !input) return [];
  const range = document.createRange();
  range.selectNodeContents(label);
  const [text, box] = [range.getBoundingClientRect(), (input.closest(".wrap-inner") ?? input).getBoundingClientRect()];
  return [[label.innerText, Math.max(box.left - text.right, box.top - text.bottom)]];
})"""
# Parts of the page whose text is wider than they are.
CUT = """() => [...document.querySelectorAll("label, button, .hint, h1, .state, .note, input:not([type=range])")]
  .filter((part) => part.offsetParent && (part.innerText || part.value) && part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).display !== "inline")
  .map((part) => part.outerHTML)"""
GOOD = {"r": "I am the tuned one.", "r-base": "I am the base."}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    with stand_in() as stub:
        stub.key = KEY
        folder = tmp_path_factory.mktemp("page")
        adapter = folder / "outputs/r/adapter"
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = template_source.bake(tiny.CHATML, BUILT_IN)
        tokenizer.save_pretrained(adapter)
        (adapter / "manifest.json").write_text("{}")
        own = ("--serve.port", str(stub.server_address[1]))
        with shown(folder, *own, "--ui.port", str(free_port()), fresh=True, LOCKSTEP_API_KEY=KEY) as url:
            yield stub, url


@pytest.fixture
def server(served: tuple[Server, str]) -> Iterator[Server]:
    stub = served[0]
    stub.answer = lambda model, question: GOOD[model]
    stub.pace = 0.0
    yield stub
    stub.mode, stub.gate, stub.key = "", True, KEY
    stub.seen.clear()


@pytest.fixture
def person(browser: Any, served: tuple[Server, str], server: Server) -> Iterator[Person]:
    visitor = Person(browser, served[1]).ready()
    yield visitor
    visitor.context.close()
    assert {url.split("/")[2] for url in visitor.asked if url.startswith("http")} == {served[1].split("/")[2]}


def test_an_answer_grows_and_is_counted_and_the_key_stays_here(person: Person, server: Server) -> None:
    server.answer, server.pace = lambda model, question: "word " * 60, 0.02
    person.say("你是谁？")
    wait_for(lambda: len(person.text()) > 20)
    first = len(person.text())
    assert person.page.locator("#stop").is_visible() and not person.page.locator("#send").is_visible()
    wait_for(lambda: len(person.text()) > first + 20)
    person.settled(1)
    assert person.text() == ("word " * 60).strip()
    assert re.match(r"300 tokens · [\d.]+ tokens/s · first after [\d.]+ s · prompt 5", person.note())
    expected = {
        "model": "r",
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 50,
        "repetition_penalty": 1.1,
        "max_tokens": 256,
    }
    assert server.seen[0].items() >= expected.items()
    assert server.seen[0]["messages"] == [{"role": "user", "content": "你是谁？"}]
    endless = ("/heartbeat/", "/queue/data")
    kinds = ("document", "script", "fetch", "xhr")
    texts = [response for response in person.got if response.request.resource_type in kinds and response.ok]
    bodies = [response.text() for response in texts if not any(part in response.url for part in endless)]
    assert len(bodies) > 3 and not any(KEY in body for body in bodies)
    assert all(
        "'self'" in response.headers["content-security-policy"]
        for response in person.got
        if "127.0.0.1" in response.url and response.status == 200
    )
    assert not person.page.locator("footer").is_visible()


def test_stop_keeps_what_came_and_says_so(person: Person, server: Server) -> None:
    person.asks("first")
    server.answer, server.pace = lambda model, question: "word " * 100, 0.02
    person.say("second")
    wait_for(lambda: len(person.text()) > 20)
    person.page.click("#stop")
    person.told("stopped by you")
    stopped = person.text()
    assert 20 < len(stopped) < 300 and "≈" in person.note()
    time.sleep(0.5)
    assert person.text() == stopped
    server.answer, server.pace = lambda model, question: "third answer", 0.0
    person.say("third")
    wait_for(lambda: person.text() == "third answer")
    sent = [message["content"] for message in server.seen[-1]["messages"]]
    assert sent == ["first", GOOD["r"], "third"]  # the stopped one is not sent on


def test_a_reader_who_leaves_ends_the_answer(browser: Any, served: tuple[Server, str], server: Server) -> None:
    server.answer, server.pace = lambda *_: "word " * 1000, 0.02  # 100 s
    person = Person(browser, served[1]).ready()
    person.say("go on")
    wait_for(lambda: len(person.text()) > 20)
    person.context.close()
    wait_for(lambda: not any("process_request" in thread.name for thread in threading.enumerate()), 20)


def test_retry_edit_and_clear(person: Person, server: Server) -> None:
    person.asks("one")
    person.asks("two", 2)
    server.answer = lambda model, question: f"{question}, again"
    person.button("Retry").last.click()
    wait_for(lambda: person.text() == "two, again")
    person.settled(2)
    assert server.seen[1] == server.seen[2]
    person.button("Edit").first.click()
    editor = person.page.locator("#pane textarea")
    editor.fill("uno")
    person.button("Submit").first.click()
    wait_for(lambda: person.text() == "uno, again")
    person.settled(1)
    assert server.seen[-1]["messages"] == [{"role": "user", "content": "uno"}]
    person.page.click("#new")
    wait_for(lambda: not person.text())
    person.asks("new")
    assert server.seen[-1]["messages"] == [{"role": "user", "content": "new"}]


def test_two_models_answer_side_by_side(person: Person, server: Server) -> None:
    person.page.click("#compare input")
    person.page.locator("[role=option]", has_text="r-base · dequantized base").click()
    person.page.wait_for_selector("#pane2")
    person.asks("who?")
    wait_for(lambda: person.text("pane2") == GOOD["r-base"])
    assert person.text() == GOOD["r"]
    assert "dequantized base" in person.page.locator("#pane2").inner_text()
    person.asks("and now?", 2)
    wait_for(lambda: len(server.seen) == 4)
    server.answer = lambda model, question: f"{model} {question}"
    person.page.locator('#pane2 button[aria-label="Edit"]').last.click()
    person.page.locator("#pane2 textarea").fill("and tomorrow?")
    person.page.locator('#pane2 button[aria-label="Submit"]').first.click()
    wait_for(lambda: person.text("pane2") == "r-base and tomorrow?")
    person.settled(2)
    assert person.text() == "r and tomorrow?" and person.text(turn=0) == GOOD["r"]
    histories = {body["model"]: body["messages"][1]["content"] for body in server.seen[2:4]}
    assert histories == GOOD  # each goes on with its own answers
    markdown = person.saved("#markdown")
    assert markdown.count("## who?") == 1 and GOOD["r"] in markdown and GOOD["r-base"] in markdown


def test_settings_go_with_the_question_and_a_conversation_becomes_a_training_row(
    person: Person, server: Server
) -> None:
    person.page.locator("#preset label", has_text="Greedy").click()
    wait_for(lambda: person.page.locator("#temperature input[type=number]").input_value() == "0")
    person.page.fill("#system textarea", "Be brief.")
    person.asks("你好")
    expected = {"temperature": 0, "top_p": 1, "top_k": -1, "repetition_penalty": 1, "max_tokens": 256}
    assert server.seen[0].items() >= expected.items()
    server.mode = "length"
    person.asks("cut", 2)
    (row,) = json.loads(person.saved("#json"))
    assert row == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": GOOD["r"]},
        ]
    }  # an answer that was cut off teaches nothing good
    read = layouts.parse(Record("chat.json", 1, JsonObject(row.items())), Data())
    assert [message["content"] for message in read.messages] == ["Be brief.", "你好", GOOD["r"]]  # type: ignore[union-attr]


def test_answers_that_are_not_whole_are_marked(person: Person, server: Server) -> None:
    server.mode = "length"
    person.say("long")
    person.told("cut off at the token limit")
    server.mode = "in the content"
    person.say("breaks")
    person.told("broke off")
    assert "incomplete" in person.note() and person.text() == GOOD["r"][0]


def test_an_error_is_a_state_line_and_the_question_is_kept(person: Person, server: Server) -> None:
    for mode, says in (("429", "flooded (429)"), ("500", "(500)"), ("reset", "broke off")):
        server.mode = mode
        person.say(f"keep me, {mode}")
        wait_for(lambda says=says: says in person.page.locator("#trouble").inner_text())
        assert person.page.locator("#box textarea").input_value() == f"keep me, {mode}"
        assert not person.text() and not person.note()
        server.mode = ""
        person.page.press("#box textarea", "Enter")
        person.settled(1)
        assert not person.page.locator("#trouble").is_visible()
        person.page.click("#new")
        wait_for(lambda: not person.text())


def test_a_gate_that_shuts_and_a_key_that_changes(person: Person, server: Server) -> None:
    server.gate = False
    person.page.wait_for_selector(".state.checked")
    assert "being checked" in person.page.locator("#state").inner_text()
    server.mode = "503"
    person.say("early")
    wait_for(lambda: "still being checked" in person.page.locator("#trouble").inner_text())
    server.gate, server.mode = True, ""
    person.ready()
    wait_for(lambda: not person.page.locator("#trouble").is_visible())  # by itself
    server.key = "another"
    person.page.wait_for_selector(".state.locked")
    assert "LOCKSTEP_API_KEY" in person.page.locator("#state").inner_text()


def test_enter_sends_shift_enter_breaks_and_spelling_chinese_does_neither(person: Person, server: Server) -> None:
    box = "#box textarea"
    person.page.fill(box, "one")
    person.page.press(box, "Shift+Enter")
    person.page.type(box, "two")
    assert person.page.locator(box).input_value() == "one\ntwo"
    person.page.eval_on_selector(
        box,
        "box => box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))",
    )
    time.sleep(0.5)
    assert not server.seen
    person.page.press(box, "Enter")
    person.settled(1)
    assert server.seen[0]["messages"][0]["content"] == "one\ntwo"


def test_what_a_model_writes_runs_nothing_and_fetches_nothing(person: Person, server: Server) -> None:
    server.answer = lambda *_: (
        "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
        "![x](http://127.0.0.2:9/leak.png) <b>end</b>"
    )
    person.asks("attack")
    time.sleep(0.5)
    assert person.page.title() == "Lockstep"
    blocked = [url for url in person.asked if "127.0.0.2" in url]
    person.asked = [url for url in person.asked if url not in blocked]
    assert not any("127.0.0.2" in response.url for response in person.got)


def test_a_long_chinese_answer_on_a_phone(browser: Any, served: tuple[Server, str], server: Server) -> None:
    server.answer, server.pace = lambda *_: LONG, 0.001
    person = Person(browser, served[1], width=390, locale="zh-CN", color_scheme="dark").ready()
    person.say("请写一首长诗")
    wait_for(lambda: person.text() == LONG)
    wait_for(lambda: f"{len(LONG)} 个 token" in person.note())
    page = person.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    box, send = page.locator("#box").bounding_box(), page.locator("#send").bounding_box()
    assert box["x"] >= 0 and send["x"] + send["width"] <= 390 and send["y"] + send["height"] <= 800
    assert page.locator("#send").inner_text() == "发送" and "就绪" in page.locator("#state").inner_text()
    answer = page.locator("#pane .bot .message-content").first.bounding_box()
    assert answer["x"] >= 0 and answer["x"] + answer["width"] <= 390
    page.locator("#language label", has_text="EN").click()
    wait_for(lambda: page.locator("#send").inner_text() == "Send")
    assert page.evaluate("document.documentElement.lang") == "en"
    person.context.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_no_label_touches_its_box_and_no_text_is_cut(
    browser: Any, served: tuple[Server, str], server: Server, width: int, locale: str
) -> None:
    person = Person(browser, served[1], width, locale).ready()
    page = person.page
    if width == 390:
        page.locator("#settings .toggle-button").click()
        page.wait_for_function("document.querySelector('#settings').getBoundingClientRect().left >= 0")
    page.click("#compare input")
    page.locator("[role=option]").nth(1).click()
    page.wait_for_selector("#pane2", state="attached")
    gaps = page.evaluate(LABELS)
    assert len({label for label, _ in gaps}) == 9 and all(gap >= 4 for _, gap in gaps), [*gaps]
    assert page.evaluate(CUT) == []
    built_in = page.locator("#built-in")
    assert BUILT_IN in built_in.inner_text() and ("Built in" if locale == "en-US" else "内置") in built_in.inner_text()
    if width == 390:
        page.locator("#settings .toggle-button").click()
    person.say("long " * 60)
    wait_for(lambda: page.locator("#pane2 .note").count() == 1 and page.locator("#send").is_visible())
    for pane in ("pane", "pane2"):
        name, messages = page.locator(f"#{pane} label").first, page.locator(f"#{pane} .bubble-wrap")
        assert name.bounding_box()["y"] + name.bounding_box()["height"] <= messages.bounding_box()["y"]
    assert page.evaluate(CUT) == []
    person.context.close()


def test_login_busy_port_second_server_and_recovery(browser: Any, tmp_path: Path) -> None:
    port, second = free_port(), free_port()
    busy = Server(("127.0.0.1", free_port()), Handler)
    words = ("--base-url", f"http://127.0.0.1:{port}/v1", "--compare-url", f"http://127.0.0.1:{second}/v1")
    taken = str(busy.server_address[1])
    words += ("--ui.host", "0.0.0.0", "--ui.port", taken, "--ui.user", "reader")
    with shown(tmp_path, *words, LOCKSTEP_UI_PASSWORD="open sesame") as url:
        assert taken not in url
        for route in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                DIRECT.open(f"{url}/{route}", timeout=5)
        person = Person(browser, url)
        page = person.page
        for password in ("wrong", "open sesame"):
            page.wait_for_selector("input[type=password]")
            page.locator("input").first.fill("reader")
            page.fill("input[type=password]", password)
            page.get_by_role("button", name="Login").click()
            time.sleep(1)
        page.wait_for_selector(".state.down")
        assert "not answering" in page.locator("#state").inner_text()
        person.say("anyone?")
        wait_for(lambda: "not ready" in page.locator("#trouble").inner_text())
        with stand_in(port) as first, stand_in(second) as other:
            first.models, other.models = ("r",), ("base",)
            first.answer = other.answer = lambda model, question: f"{model} heard"
            wait_for(lambda: page.locator(".state.ready").count() == 2)
            page.wait_for_selector("#pane2")  # a second server is there to be compared with
            person.ready().asks("anyone?")
            wait_for(lambda: person.text("pane2") == "base heard")
            assert person.text() == "r heard"
        wait_for(lambda: page.locator(".state.down").count() == 2)
        person.say("and now?")
        wait_for(lambda: "no server answers" in page.locator("#trouble").inner_text())
        assert person.text() == "r heard" and page.locator("#box textarea").input_value() == "and now?"
        person.context.close()
    busy.server_close()


@pytest.mark.parametrize("names", [("r", "base"), ("base", "r")])
def test_a_second_server_stands_beside_the_first_whichever_is_ready_first(
    browser: Any, tmp_path: Path, names: tuple[str, str]
) -> None:
    ports = {name: free_port() for name in names}
    words = ("--base-url", f"http://127.0.0.1:{ports['r']}/v1", "--compare-url", f"http://127.0.0.1:{ports['base']}/v1")
    with shown(tmp_path, *words) as url, stand_in(ports[names[0]]) as early:
        early.models = (names[0],)
        person = Person(browser, url).ready()
        page = person.page
        assert names[0] in page.locator("#model input").input_value() and not page.locator("#pane2").is_visible()
        with stand_in(ports[names[1]]) as late:
            late.models = (names[1],)
            early.answer = late.answer = lambda model, question: f"{model} heard"
            page.wait_for_selector("#pane2")
            assert page.locator("#model input").input_value() == "r"
            person.asks("anyone?")
            wait_for(lambda: person.text("pane2") == "base heard")
            assert person.text() == "r heard"
            page.click("#compare input")
            page.locator("[role=option]", has_text="nothing").click()
            page.click("#new")
            page.wait_for_selector("#pane2", state="hidden")
            time.sleep(1)  # some looks at the servers later, the reader's choice stands
            assert not page.locator("#pane2").is_visible()
        person.context.close()


def test_without_a_login_the_page_answers_to_this_machines_names_only(tmp_path: Path) -> None:
    def status(url: str, host: str) -> int:
        try:
            return int(DIRECT.open(urllib.request.Request(url, headers={"Host": host}), timeout=5).status)
        except urllib.error.HTTPError as error:
            return error.code

    with shown(tmp_path, "--base-url", "http://127.0.0.1:9/v1") as url:
        for path in ("", "config"):
            assert [status(url + "/" + path, host) for host in ("localhost:1", "127.0.0.1")] == [200, 200]
            for host in ("evil.example", "localhost.evil.example:1"):
                assert status(url + "/" + path, host) == 403
    with shown(tmp_path, "--base-url", "http://127.0.0.1:9/v1", LOCKSTEP_UI_PASSWORD="p" * 12) as url:
        assert status(url, "chat.example") == 200  # shows the login


def test_what_cannot_be_is_one_line(stage: Run) -> None:
    def error(*words: str, **extra: str) -> str:
        answer = stage("06_chat_ui.py", *words, **extra)
        assert answer.returncode == 2 and answer.stderr.count("\n") == 1
        return answer.stderr

    assert "set LOCKSTEP_UI_PASSWORD" in error("--ui.host", "0.0.0.0")
    assert "set LOCKSTEP_UI_PASSWORD" in error("--ui.host", "0.0.0.0", LOCKSTEP_UI_PASSWORD="short")
    assert "is no address" in error("--ui.host", "here")
    assert "ends in /v1" in error("--base-url", "http://127.0.0.1:8000")
    assert "ends in /v1" in error("--compare-url", "ftp://127.0.0.1/v1")
