"""A client that asks before the server has opened: it waits, says so once, and not for ever."""

import threading
import time
from pathlib import Path

import pytest
from support.misbehaving import Handler, Server
from support.serving import free_port

from lockstep.client import openai_client
from lockstep.client.openai_client import Endpoint
from lockstep.client.request_errors import NoAnswer
from lockstep.client.server_wait import ServerWait
from lockstep.endpoint import server_note
from lockstep.settings.schema import Sampling

BODY = openai_client.request(Sampling(), "r", [{"role": "user", "content": "olleh"}])


def note(folder: Path, url: str, state: server_note.State) -> None:
    """This process says that it is the supervisor of a server."""
    server_note.write(folder, state, url=url, model="r", mode="merged", served={}, grace=1)


def endpoint(url: str, seconds: float, notices: list[str], *folders: Path) -> Endpoint:
    return Endpoint(url, retries=0, wait=ServerWait(url, seconds, folders, notices.append))


def test_a_server_that_is_being_checked_is_waited_for_and_that_is_said_once(server: Server) -> None:
    server.fault = lambda question, attempt: "503" if attempt < 2 else ""
    notices: list[str] = []
    assert endpoint(server.url, 60, notices).ask(BODY).text == "hello"
    (line,) = notices
    assert "still being checked" in line and "waiting up to 60 s" in line and server.tries["olleh"] == 3


def test_from_loading_to_the_gate_each_is_said_once(server: Server) -> None:
    server.fault = lambda question, attempt: ("loading", "loading", "503", "503", "")[min(attempt, 4)]
    notices: list[str] = []
    assert endpoint(server.url, 60, notices).ask(BODY).text == "hello"
    assert ["still starting" in line for line in notices] == [True, False] and "being checked" in notices[1]


def test_a_server_that_loads_its_model_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    url, notices, answers = f"http://127.0.0.1:{port}/v1", list[str](), list[str]()
    note(tmp_path, url, "starting")
    asking = threading.Thread(target=lambda: answers.append(endpoint(url, 60, notices, tmp_path).ask(BODY).text))
    asking.start()
    end = time.monotonic() + 30
    while not notices:
        assert time.monotonic() < end
        time.sleep(0.05)
    with Server(("127.0.0.1", port), Handler) as late:
        threading.Thread(target=late.serve_forever, daemon=True).start()
        asking.join(30)
        late.shutdown()
    assert answers == ["hello"] and len(notices) == 1 and "starting" in notices[0]


def test_the_wait_ends(server: Server, tmp_path: Path) -> None:
    server.mode = "503"
    started = time.monotonic()
    with pytest.raises(NoAnswer, match=r"still being checked after 1 s \(--wait\)") as caught:
        endpoint(server.url, 1, []).ask(BODY)
    assert caught.value.code == "not_ready" and 1 <= time.monotonic() - started < 20
    with pytest.raises(NoAnswer) as caught:
        endpoint(server.url, 0, []).ask(BODY)
    assert caught.value.code == "being_checked"


@pytest.mark.parametrize("state", ["none", "elsewhere", "open"])
def test_where_no_server_is_on_its_way_none_is_waited_for(tmp_path: Path, state: str) -> None:
    url, notices = f"http://127.0.0.1:{free_port()}/v1", list[str]()
    if state == "elsewhere":
        note(tmp_path, "http://127.0.0.1:9/v1", "starting")
    elif state == "open":
        note(tmp_path, url, "open")
    with pytest.raises(NoAnswer, match="no server answers at") as caught:
        endpoint(url, 60, notices, tmp_path).ask(BODY)
    assert caught.value.code == "no_server" and not notices


def test_a_run_that_nobody_serves_is_not_asked_twice(tmp_path: Path) -> None:
    url, notices = f"http://127.0.0.1:{free_port()}/v1", list[str]()
    asker = Endpoint(url, retries=5, notice=notices.append, wait=ServerWait(url, 60, [tmp_path], notices.append))
    with pytest.raises(NoAnswer, match=r"no server answers at .* start one with `make serve`"):
        asker.ask(BODY)
    assert not notices
