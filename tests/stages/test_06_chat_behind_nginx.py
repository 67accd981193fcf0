"""Stage 06 under a path of a real nginx, in a real Chromium: one that passes paths on, and one that takes its own off."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support.chat_page import CHROMIUM, Person, answers, shown, stand_in
from support.checks import wait_for
from support.misbehaving import Server
from support.serving import free_port

playwright = pytest.importorskip("playwright.sync_api")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed"),
    pytest.mark.skipif(not NGINX, reason="no nginx is installed"),
]
NAME, PASSWORD = "chat.example", "open sesame"
CONFIG = """
daemon off;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder};
    fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{  # takes its path off, as docs/chat.md shows
        listen 127.0.0.1:{ports[0]};
        location /chat/ {{
            proxy_pass http://127.0.0.1:{page}/;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
    server {{  # passes the path on
        listen 127.0.0.1:{ports[1]};
        location /chat {{
            proxy_pass http://127.0.0.1:{page};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, page: int) -> Iterator[list[str]]:
    """The two proxies, as a process of this test's own; their addresses."""
    ports = [free_port(), free_port()]
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, page=page, ports=ports))
    words = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    proxy = subprocess.Popen(words)
    try:
        yield [f"http://{NAME}:{port}" for port in ports]
    finally:
        proxy.terminate()
        proxy.wait(timeout=20)


def test_the_page_works_under_a_path(tmp_path: Path) -> None:
    page = free_port()
    words = ("--ui.port", str(page), "--ui.root_path", "/chat/")
    with (
        stand_in() as server,
        shown(tmp_path, "--base-url", server.url, *words, LOCKSTEP_UI_PASSWORD=PASSWORD) as url,
        nginx(tmp_path, page) as origins,
        playwright.sync_playwright() as tool,
    ):
        assert url == f"http://127.0.0.1:{page}/chat"
        names = f"--host-resolver-rules=MAP {NAME} 127.0.0.1"
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=[names])
        for origin in origins:
            wait_for(partial(answers, f"{origin.replace(NAME, '127.0.0.1')}/chat/"))
            use(Person(browser, f"{origin}/chat"), server, origin)
        use(Person(browser, url), server, f"http://127.0.0.1:{page}")  # without the proxy, too
        browser.close()


def use(person: Person, server: Server, origin: str) -> None:
    """Log in, ask, see the answer grow, and stop another."""
    person.page.locator("input").first.fill("lockstep")
    person.page.fill("input[type=password]", PASSWORD)
    person.page.get_by_role("button", name="Login").click()
    person.ready()
    server.answer, server.pace = lambda model, question: "word " * 40, 0.02
    person.say("first")
    wait_for(lambda: len(person.text()) > 20)
    part = len(person.text())
    wait_for(lambda: len(person.text()) > part + 20)
    person.settled(1)
    assert person.text() == ("word " * 40).strip()
    server.answer = lambda model, question: "word " * 500
    person.say("second")
    wait_for(lambda: person.page.locator("#pane .note").count() == 2 and len(person.text()) > 20)
    person.page.click("#stop")
    person.told("stopped by you")
    stopped = person.text()
    time.sleep(0.3)
    assert person.text() == stopped and len(stopped) < 1000
    asked = [address for address in person.asked if address.startswith("http")]
    assert len(asked) > 5 and all(address.startswith(f"{origin}/chat") for address in asked), asked
    assert any("theme.css" in address for address in asked) and {
        got.status for got in person.got if got.status >= 400
    } <= {401}
    person.context.close()
