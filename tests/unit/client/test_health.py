"""How an endpoint is, seen from outside."""

import json
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from support.misbehaving import Server

from lockstep.client.health import Health, Watch, look
from lockstep.client.openai_client import Endpoint
from lockstep.endpoint import server_note
from lockstep.errors import UserError
from lockstep.serving import preflight, probe

NOWHERE = "http://127.0.0.1:9/v1"


def test_every_state_has_its_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(server.url) == Health("ready", ("r", "r-base"))
    server.gate = False
    assert look(server.url).kind == "checked"
    server.gate, server.key = True, "sesame"
    assert look(server.url).kind == "locked"
    monkeypatch.setenv("LOCKSTEP_API_KEY", "sesame")
    assert look(server.url).kind == "ready"
    assert look(NOWHERE).kind == "down"
    assert look(server.url.replace("/v1", "/v2")).kind == "down"


def test_an_error_that_breaks_off_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection = listening.accept()[0]
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert look(f"http://127.0.0.1:{listening.getsockname()[1]}/v1").kind == "down"


@pytest.mark.parametrize("key", ["sesame\nopen sesame 1234", "芝麻开门芝麻开门芝麻开门芝麻开门", "sesame oil"])
def test_a_key_that_no_header_can_carry_is_one_line_that_does_not_tell_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("LOCKSTEP_API_KEY", key)
    for ask in (
        lambda: look(server.url), lambda: Endpoint(server.url), lambda: preflight.check_address("127.0.0.1", 1),
        lambda: probe.Server(server.url, "s").ask("/health"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="holds what no HTTP header can carry") as refusal:
            ask()
        assert key not in str(refusal.value) and key.split()[0] not in str(refusal.value).split()


def test_a_server_that_loads_is_starting_and_one_that_died_is_down(tmp_path: Path) -> None:
    me = psutil.Process()
    server_note.write(tmp_path, "starting", url=NOWHERE, model="r", mode="merged", served={}, grace=1)
    assert look(NOWHERE, tmp_path).kind == "starting"
    note = json.loads((tmp_path / "server.json").read_text())
    assert note["pid"] == me.pid
    (tmp_path / "server.json").write_text(json.dumps(note | {"since_boot": 1.0}))
    assert look(NOWHERE, tmp_path).kind == "down"


def test_a_watch_sees_a_server_come_and_go(server: Server) -> None:
    watch = Watch([(server.url, None), (NOWHERE, None)], 0.05)
    assert watch.seen == [None, None]
    watch.start()
    for opened, kind in ((True, "ready"), (False, "checked"), (True, "ready")):
        server.gate = opened
        end = time.monotonic() + 10
        while not (watch.seen[0] and watch.seen[0].kind == kind):
            assert time.monotonic() < end
            time.sleep(0.02)
    assert watch.seen[1] == Health("down")
    watch.end()
    watch.join(5)
    assert not watch.is_alive()
