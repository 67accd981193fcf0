"""Where a run's endpoint is, and under which names its models answer."""

import pytest

from lockstep.endpoint import address
from lockstep.errors import UserError
from lockstep.settings import yaml_file


def test_an_address_holds_host_and_port() -> None:
    assert address.url(yaml_file.load(None, {"serve.port": "1"})) == "http://127.0.0.1:1/v1"
    assert address.url(yaml_file.load(None, {"serve.host": "::1"})) == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    "given", ["http://[broken/v1", "http://h:x/v1", "ftp://h/v1", "http://h:8000", "/v1", "h:8000/v1"]
)
def test_an_address_that_is_none_is_refused_before_anything_is_asked(given: str) -> None:
    assert address.checked_url("http://h:8000/v1/") == "http://h:8000/v1"
    with pytest.raises(UserError, match="begins with http:// and ends in /v1"):
        address.checked_url(given)


@pytest.mark.parametrize(
    ("mode", "given", "name", "base"),
    [
        ("merged", None, "r", "r-base"), ("lora", None, "r", "r-base"), ("base", None, "r-base", "r-base"),
        ("merged", "x", "x", "x-base"), ("lora", "x", "x", "x-base"), ("base", "x", "x", "x-base"),
    ],
)  # fmt: skip
def test_a_name_says_what_answers(mode: str, given: str | None, name: str, base: str) -> None:
    words = {"run": "r", "serve.mode": mode} | ({"serve.served_model_name": given} if given else {})
    settings = yaml_file.load(None, words)
    assert (address.model_name(settings), address.base_name(settings)) == (name, base)
    assert address.serve_dir(settings).name == ("serve-base" if mode == "base" else "serve")


@pytest.mark.parametrize(
    ("url", "local"),
    [("http://127.0.0.1:8000/v1", True), ("http://[::1]:8000/v1", True), ("http://localhost/v1", True),
     ("http://0.0.0.0:8000/v1", True), ("http://10.0.0.1/v1", False), ("http://localhost.example/v1", False)],
)  # fmt: skip
def test_what_this_machine_itself_is(url: str, local: bool) -> None:
    assert address.is_local(url) == local
