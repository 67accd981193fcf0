"""The chat page as a person sees it: the program, a small OpenAI-compatible server, and somebody in a real Chromium."""

import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from support.checks import wait_for
from support.misbehaving import Handler, Server
from support.programs import ROOT, script_environment

CHROMIUM = shutil.which("chromium")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def shown(folder: Path, *words: str, fresh: bool = False, **environment: str) -> Iterator[str]:
    """The page, as a user starts it; its address.

    Args:
        fresh: as a program of its own, and not forked after its imports.
    """
    argv = [str(ROOT / "scripts/06_chat_ui.py"), "--run", "r", "--ui.check_seconds", "0.3", *words]
    environment = script_environment(folder, HTTP_PROXY="http://127.0.0.1:9", **environment)
    output = folder / "page.txt"
    output.write_text("")
    if fresh:
        with output.open("w") as stream:
            program = psutil.Popen([sys.executable, *argv], env=environment, cwd=folder, stdout=stream)
    else:
        program = psutil.Process(forked(argv, environment, folder, output))
    try:
        wait_for(lambda: "chat page at" in output.read_text(), 60)
        line = next(line for line in output.read_text().splitlines() if "chat page at" in line)
        url = line.split()[3].replace("0.0.0.0", "127.0.0.1")
        wait_for(lambda: answers(url))
        yield url
    finally:
        program.terminate()
        program.wait(timeout=20)


@cache
def warm() -> subprocess.Popen[str]:
    """What pages are forked from, for all tests of a process."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT / 'tests'}"}
    program = [sys.executable, str(ROOT / "tests/support/warm_pages.py")]
    return subprocess.Popen(program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def forked(argv: list[str], environment: dict[str, str], folder: Path, output: Path) -> int:
    """Fork a page; its process id."""
    stdin, stdout = warm().stdin, warm().stdout
    assert stdin and stdout
    task = {"argv": argv, "environment": environment, "folder": str(folder), "output": str(output)}
    stdin.write(json.dumps(task) + "\n")
    stdin.flush()
    return int(stdout.readline())


def answers(url: str) -> bool:
    try:
        return bool(DIRECT.open(url, timeout=5).status)
    except OSError:
        return False


@contextmanager
def stand_in(port: int = 0) -> Iterator[Server]:
    stub = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=stub.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()


class Person:
    """Somebody in front of the page, who sees whether it asks any other server."""

    def __init__(self, browser: Any, url: str, width: int = 1280, locale: str = "en-US", **more: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, locale=locale, **more)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.asked: list[str] = []
        self.got: list[Any] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("response", lambda answer: self.got.append(answer))
        self.page.goto(url)

    def ready(self) -> "Person":
        self.page.wait_for_selector(".state.ready")
        self.page.wait_for_function("document.querySelector('#model input').value")
        return self

    def say(self, text: str) -> None:
        """Type and press Enter; once more where nothing happens, as right after an answer Gradio takes no question."""
        self.page.fill("#box textarea", text)
        self.page.press("#box textarea", "Enter")
        self.page.wait_for_timeout(200)
        unheard = self.page.locator("#box textarea").input_value() == text and self.page.locator("#send").is_visible()
        if unheard and not self.page.locator("#trouble").is_visible():
            self.page.press("#box textarea", "Enter")

    def text(self, pane: str = "pane", turn: int = -1) -> str:
        """An answer, as it stands on the screen; all are read at once, as they may go at any time."""
        texts = self.page.locator(f"#{pane} .bot .message-content:not(:has(.note))").all_inner_texts()
        return texts[turn].strip() if texts else ""

    def note(self, pane: str = "pane") -> str:
        notes = self.page.locator(f"#{pane} .note").all_inner_texts()
        return notes[-1] if notes else ""

    def told(self, text: str) -> None:
        """Wait until the last note says something."""
        wait_for(lambda: text in self.note())

    def asks(self, text: str, turns: int = 1) -> None:
        """Ask, and wait for the end of the answer."""
        self.say(text)
        self.settled(turns)

    def settled(self, turns: int) -> None:
        wait_for(
            lambda: (
                self.page.locator("#pane .note").count() == turns
                and "prompt" in self.note()
                and self.page.locator("#send").is_visible()
            )
        )

    def button(self, label: str) -> Any:
        return self.page.locator(f'#pane button[aria-label="{label}"]')

    def saved(self, button: str) -> str:
        with self.page.expect_download() as waiting:
            self.page.click(button)
        return Path(waiting.value.path()).read_text(encoding="utf-8")
