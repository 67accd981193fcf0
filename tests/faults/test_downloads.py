"""A dozen ways in which a download goes wrong: it goes on, or fails in one line; what is half or wrong never has a manifest."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support import hub as hub_stub
from support.programs import ROOT, script_environment

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise("A download that goes wrong goes on, or fails in one line; never a manifest"),
]

PROGRAM = """
import sys
from lockstep.data import sources
from lockstep import paths
from lockstep.settings import cli
cli.run(lambda: print(paths.label(sources.dataset(sys.argv[1], "org/tiny", None, print))))
"""
LARGE, SMALL = "data/train.jsonl", "data/test.jsonl"
ROW = b'{"instruction": "a", "output": "b"}\n'
FILES = {LARGE: ROW * 40_000, SMALL: ROW}
Get = Callable[..., CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[hub_stub.Hub]:
    (tmp_path / "nothing").mkdir()
    with hub_stub.serve(tmp_path / "nothing") as served:
        served.files |= FILES
        yield served


@pytest.fixture
def get(hub: hub_stub.Hub, tmp_path: Path) -> Get:
    def run(source: str, limit: int = 0) -> CompletedProcess[str]:
        settings = {
            "PYTHONPATH": str(ROOT / "scripts"), "HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "3", "HF_HUB_DOWNLOAD_TIMEOUT": "3", "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "0",
            "MODELSCOPE_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip

        def starve() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.run(
            [sys.executable, "-c", PROGRAM, source], env=script_environment(tmp_path, **settings), cwd=tmp_path,
            capture_output=True, text=True, timeout=200, check=False, preexec_fn=starve if limit else None,
        )  # fmt: skip

    return run


def clean(answer: CompletedProcess[str], tmp_path: Path, hub: hub_stub.Hub) -> None:
    """All of it, or one line and nothing that looks finished."""
    folder = tmp_path / "data/hub/org--tiny"
    assert "Traceback" not in answer.stderr, answer.stderr[-2000:]
    if answer.returncode == 0:
        assert {name: (folder / name).read_bytes() for name in FILES} == {name: hub.files[name] for name in FILES}
        assert (folder / "manifest.json").exists()
    else:
        assert answer.returncode == 2, answer.stderr
        assert sum(line.startswith("error:") for line in answer.stderr.splitlines()) == 1
        assert not folder.exists()


FAULTS = {
    "cut at 10 %": (LARGE, "cut10"), "cut at 50 %": (LARGE, "cut"), "cut at 99 %": (LARGE, "cut99"), "a byte flipped": (LARGE, "flip"),
    "a byte flipped in a small file": (SMALL, "flip"), "too short a length": (LARGE, "short"), "too long a length": (LARGE, "long"),
    "no bytes for a while": (LARGE, "stall"), "one file is not there": (SMALL, "404"), "the server is ill": (LARGE, "503"),
    "a page in the place of the file": (LARGE, "html"), "a redirect to itself": (SMALL, "loop"), "access is refused": (LARGE, "403"),
}  # fmt: skip


@pytest.mark.parametrize("source", ["hub", "modelscope"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_and_then_none(get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str, fault: str) -> None:
    name, kind = FAULTS[fault]
    hub.faults[name] = kind
    clean(get(source), tmp_path, hub)
    hub.faults.clear()
    answer = get(source)
    assert answer.returncode == 0, answer.stderr
    clean(answer, tmp_path, hub)


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_a_fault_that_shows_three_times_only(get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str) -> None:
    hub.faults[LARGE], hub.times[LARGE] = "503", 3
    for _ in range(4):
        answer = get(source)
        clean(answer, tmp_path, hub)
    assert answer.returncode == 0


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_all_bytes_in_answer_to_a_request_for_the_rest(
    get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str
) -> None:
    hub.faults[LARGE] = "cut"
    assert get(source).returncode == 2
    hub.faults[LARGE] = "whole"
    clean(get(source), tmp_path, hub)
    hub.faults.clear()
    assert get(source).returncode == 0


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_the_branch_moves_between_two_tries(get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str) -> None:
    hub.faults[LARGE] = "cut"
    assert get(source).returncode == 2
    hub.commit = "fedcba9876543210fedcba9876543210fedcba98"
    hub.files[LARGE] = ROW.replace(b"b", b"c") * 40_000  # as many bytes
    hub.files[SMALL] = b'{"instruction": "b", "output": "c"}\n'
    hub.faults.clear()
    answer = get(source)
    clean(answer, tmp_path, hub)
    while answer.returncode:  # what was left of the other commit was found to be wrong, and removed
        answer = get(source)
        clean(answer, tmp_path, hub)
    assert json.loads((tmp_path / "data/hub/org--tiny/manifest.json").read_text())["revision"] == hub.commit


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_pages_for_humans_instead_of_the_list(get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str) -> None:
    hub.pages = True
    answer = get(source)
    assert answer.returncode == 2
    clean(answer, tmp_path, hub)


@pytest.mark.parametrize("limit", [2_000, 200_000])
@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_the_disk_is_full(get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str, limit: int) -> None:
    answer = get(source, limit)
    assert answer.returncode == 2
    clean(answer, tmp_path, hub)
    assert get(source).returncode == 0
