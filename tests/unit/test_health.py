"""How an endpoint is, seen from outside."""

import json
import time
from pathlib import Path

import psutil
import pytest
from misbehaving import Server

from lockstep.health import Health, Watch, look

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


def test_a_server_that_loads_is_starting_and_one_that_died_is_down(tmp_path: Path) -> None:
    me = psutil.Process()
    note = {"pid": me.pid, "since_boot": me.create_time() - psutil.boot_time(), "state": "starting"}
    (tmp_path / "server.json").write_text(json.dumps(note))
    assert look(NOWHERE, tmp_path).kind == "starting"
    (tmp_path / "server.json").write_text(json.dumps(note | {"since_boot": 1.0}))
    assert look(NOWHERE, tmp_path).kind == "down"


def test_a_watch_sees_a_server_come_and_go(server: Server) -> None:
    watch = Watch([(server.url, None), (NOWHERE, None)], 0.05)
    assert watch.seen == [None, None]
    watch.start()
    for gate, kind in ((True, "ready"), (False, "checked"), (True, "ready")):
        server.gate = gate
        end = time.monotonic() + 10
        while not (watch.seen[0] and watch.seen[0].kind == kind):
            assert time.monotonic() < end
            time.sleep(0.02)
    assert watch.seen[1] == Health("down")
    watch.end()
    watch.join(5)
    assert not watch.is_alive()
