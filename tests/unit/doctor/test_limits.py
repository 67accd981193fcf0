"""What the system allows: real sockets, and real limits of a child."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.programs import ROOT, free_port

from lockstep.doctor import limits


def in_child(call: str, limit: Callable[[], None] | None = None, **more: str) -> list[str]:
    """Codes that a look gives in a process of its own."""
    program = f"from lockstep.doctor import limits; print(*[f.code for f in limits.{call}.findings])"
    answer = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")} | more,
        capture_output=True, text=True, check=True, preexec_fn=limit,
    )  # fmt: skip
    return answer.stdout.split()


@pytest.fixture
def foreign_server() -> Iterator[tuple[int, int]]:
    """(port, process) of a program that has nothing to do with ours."""
    port = free_port()
    program = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield port, process.pid
        process.kill()


def test_a_foreign_server_on_the_port_is_named(foreign_server: tuple[int, int]) -> None:
    port, process = foreign_server
    (finding,) = limits.port("127.0.0.1", port).findings
    assert finding.code == "port_taken" and finding.stops
    assert f"(process {process})" in finding.what
    assert f"--serve.port {port + 1}" in finding.next or "--serve.port" in finding.next


def test_our_own_server_on_the_port_is_no_fault(foreign_server: tuple[int, int]) -> None:
    look = limits.port("127.0.0.1", foreign_server[0], "held by this run's own server")
    assert look.findings == () and "own server" in look.facts[0].value


def test_a_free_port_and_an_address_of_another_machine() -> None:
    assert limits.port("127.0.0.1", free_port()).findings == ()
    assert [f.code for f in limits.port("203.0.113.7", 8000).findings] == ["host_unknown"]


def test_too_few_files_and_too_small_ones() -> None:
    assert "file_limit" not in in_child("files()")
    low = in_child("files()", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    assert low == ["file_limit"]
    small = in_child("files()", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))
    assert small == ["file_size_limit"]


def test_a_locale_that_is_not_utf8() -> None:
    assert in_child("encoding()", LC_ALL="C.UTF-8") == []
    assert in_child("encoding()", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") == ["locale_not_utf8"]
    assert in_child("encoding()", LC_ALL="C.UTF-8", PYTHONIOENCODING="gbk") == ["locale_not_utf8"]


def test_shared_memory_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert limits.shared_memory(tmp_path / "none").findings == ()
    assert limits.shared_memory(tmp_path).findings == ()
