"""Servers of other runs are named, by those who look for one of theirs and by those who want its port."""

import socket
from pathlib import Path

import pytest
from support import homes

from lockstep.endpoint import server_note
from lockstep.errors import UserError
from lockstep.serving import launch_plan, preflight, server_control
from lockstep.settings import yaml_file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.settle(monkeypatch, tmp_path)


def serve(folder: Path, port: int) -> None:
    """Note this process as the server of a folder."""
    folder.mkdir(parents=True)
    about = {"url": f"http://127.0.0.1:{port}/v1", "model": "persona", "mode": "merged", "served": {}, "grace": 1.0}
    server_note.write(folder, "open", **about)


def test_the_servers_of_other_runs_are_named_with_what_stops_them(home: Path) -> None:
    assert server_control.others(home / "outputs/r") == ""
    serve(home / "outputs/persona/serve", 8123)
    assert server_control.others(home / "outputs/persona") == ""
    assert server_control.others(home / "outputs/r") == (
        'persona (merged) of outputs/persona runs at http://127.0.0.1:8123/v1: `make stop ARGS="--run persona"`'
    )


def test_a_port_that_is_taken_is_said_to_be_whose_before_anything_is_made(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = yaml_file.load(None, {"run": "r", "serve.port": str(port)})
        with pytest.raises(UserError, match=rf"port {port} on 127\.0\.0\.1 is in use by another program: end it, or"):
            launch_plan.check_place(settings)
        serve(home / "outputs/persona/serve", port)
        whose = rf"port {port} .* by the server of outputs/persona: run `make stop ARGS=\"--run persona\"`, or choose"
        with pytest.raises(UserError, match=whose):
            preflight.check_address("127.0.0.1", port)
    launch_plan.check_place(settings)
    with pytest.raises(UserError, match="it needs a key"):
        launch_plan.check_place(yaml_file.load(None, {"run": "r", "serve.host": "0.0.0.0"}))
    already = rf"outputs/persona is already served at .*:{port}/v1 by process \d+: run `make stop ARGS=\"--run persona\"` first"
    with pytest.raises(UserError, match=already):
        launch_plan.check_place(yaml_file.load(None, {"run": "persona"}))
