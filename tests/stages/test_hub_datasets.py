"""Data sets from both hubs: the real client libraries against a stand-in on loopback."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support import hub as hub_stub
from support.checks import one_line
from support.programs import ROOT, script_environment

PROGRAM = """
import sys
from lockstep.data import sources
from lockstep import paths
from lockstep.settings import cli
source, id, revision = sys.argv[1:]
cli.run(lambda: print(paths.label(sources.dataset(source, id, revision or None, print))))
"""
ROWS = b'{"instruction": "a", "output": "b"}\n'
WANTED = {
    "data/train.jsonl": ROWS * 40_000,  # more than the libraries hold back before they write
    "data/odd [1], name.json": b"[]",
    "data/test-00000-of-00001.parquet": b"PAR1" * 50,
    "all.CSV.gz": b"\x1f\x8b" + b"c" * 30,
}
UNWANTED = {
    "README.md": b"about",
    "tiny.py": b"import os",
    "dataset_infos.json": b"{}",
    "manifest.json": b"{}",
    ".gitattributes": b"",
    ".hidden/rows.jsonl": ROWS,
}
DELIVERY = re.compile(r"GET (/datasets/org/tiny/resolve/|/api/v1/datasets/org/tiny/repo$)")
Get = Callable[..., CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[hub_stub.Hub]:
    empty = tmp_path / "nothing"
    empty.mkdir()
    with hub_stub.serve(empty) as served:
        pictures = {f"images/{number}.png": b"png" for number in range(200)}  # ModelScope lists 200 on a page
        served.files |= pictures | WANTED | UNWANTED
        yield served


@pytest.fixture
def get(hub: hub_stub.Hub, tmp_path: Path) -> Get:
    """Call `dataset` in a process of its own, as stage 01 will; its home is `tmp_path`."""

    def run(source: str, id: str = "org/tiny", revision: str = "", url: str = "") -> CompletedProcess[str]:
        settings = {
            "PYTHONPATH": str(ROOT / "scripts"),
            "HF_ENDPOINT": url or hub.url,
            "MODELSCOPE_ENDPOINT": url or hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "0",
            "MODELSCOPE_CACHE": str(tmp_path / "cache"),
        }
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, source, id, revision],
            env=script_environment(tmp_path, **settings), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def brought(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "data/hub/org--tiny"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files.pop("manifest.json", None)
    return files


def record(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "data/hub/org--tiny/manifest.json").read_text())


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_data_files_alone_come_and_the_second_time_nothing_is_asked(
    get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str
) -> None:
    answer = get(source)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "data/hub/org--tiny"
    assert "4 files, 1 MB to fetch" in answer.stdout
    assert brought(tmp_path) == WANTED
    assert record(tmp_path)["revision"] == hub_stub.COMMIT
    assert record(tmp_path)["config"] == {"source": source, "id": "org/tiny", "revision": None}
    assert not list((tmp_path / "data/hub").glob(".*.partial*"))
    asked = len(hub.requests)
    assert get(source).returncode == 0
    assert len(hub.requests) == asked


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_a_cut_transfer_goes_on_where_it_stopped(get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str) -> None:
    hub.faults["data/train.jsonl"] = "cut"
    said = one_line(get(source))
    assert "run again to resume" in said and "--data.train_file" in said
    assert {"hub": "--data.source modelscope", "modelscope": "--data.source hub"}[source] in said
    assert not (tmp_path / "data/hub/org--tiny").exists()
    # On a slow machine a small file's turn may not have come when the large one is cut.
    whole = {name for name in WANTED if (tmp_path / "data/hub/.org--tiny.partial" / name).exists()}
    assert "data/train.jsonl" not in whole
    hub.faults.clear()
    hub.headers.clear()
    hub.requests.clear()
    answer = get(source)
    assert answer.returncode == 0, answer.stderr
    assert brought(tmp_path) == WANTED
    again = [(r, h.get("range")) for r, h in zip(hub.requests, hub.headers, strict=True) if DELIVERY.match(r)]
    assert len(again) == len(WANTED) - len(whole)  # the Hub's library begins what was cut anew
    if source == "hub":
        asked_for = {urllib.parse.unquote(r.partition(f"{hub_stub.COMMIT}/")[2]) for r, _ in again}
        assert asked_for == WANTED.keys() - whole
    assert source == "hub" or any(str(asked).startswith("bytes=") and asked != "bytes=0-" for _, asked in again)


@pytest.mark.parametrize("source", ["hub", "modelscope"])
@pytest.mark.parametrize("name", ["data/odd [1], name.json", "data/test-00000-of-00001.parquet"])
def test_a_flipped_byte_never_counts(get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str, name: str) -> None:
    hub.faults[name] = "flip"
    said = one_line(get(source))
    assert name in said or "did not deliver" in said
    assert not (tmp_path / "data/hub/org--tiny").exists()
    hub.faults.clear()
    assert get(source).returncode == 0
    assert brought(tmp_path) == WANTED


def test_what_is_wrong_is_said_in_one_line(get: Get, hub: hub_stub.Hub) -> None:
    said = one_line(get("hub", "org/none"))
    assert "the Hub has no data set 'org/none'" in said and "--data.id" in said
    assert "has no revision 'v9': check --data.revision" in one_line(get("hub", revision="v9"))
    said = one_line(get("modelscope", "org/none"))
    assert "ModelScope has no data set 'org/none'" in said and "--data.id" in said
    for wrong in ("squad", "a/b/c", "../b", "a/.."):
        assert "--data.id" in one_line(get("hub", wrong))
    assert "--data.source" in one_line(get("elsewhere"))
    hub.gated = True
    assert "HF_TOKEN" in one_line(get("hub"))
    assert "MODELSCOPE_API_TOKEN" in one_line(get("modelscope"))
    hub.gated = False
    hub.files = dict(UNWANTED)
    assert "org/tiny has no data file" in one_line(get("hub"))
    assert "org/tiny has no data file" in one_line(get("modelscope"))


def test_no_network_names_other_ways(get: Get) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for source, other in (("hub", "modelscope"), ("modelscope", "hub")):
        said = one_line(get(source, url=nowhere))
        assert f"--data.source {other}" in said and "--data.train_file" in said


@pytest.mark.parametrize("source", ["hub", "modelscope"])
@pytest.mark.parametrize("name", ["../evil.jsonl", "/evil.jsonl", "data/../../evil.jsonl", "..\\evil.jsonl"])
def test_a_name_that_leads_elsewhere_spoils_the_listing(
    get: Get, hub: hub_stub.Hub, tmp_path: Path, source: str, name: str
) -> None:
    hub.files[name] = ROWS
    assert "no safe path" in one_line(get(source))
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.rglob("*.jsonl"))
    assert not any(DELIVERY.match(request) for request in hub.requests)


def test_another_source_or_revision_replaces_the_folder_once_it_is_whole(
    get: Get, hub: hub_stub.Hub, tmp_path: Path
) -> None:
    assert get("hub").returncode == 0
    hub.faults["all.CSV.gz"] = "404"
    one_line(get("modelscope"))
    assert record(tmp_path)["config"]["source"] == "hub"  # the old one stands until then
    hub.faults.clear()
    del hub.files["all.CSV.gz"]
    assert get("modelscope").returncode == 0
    assert record(tmp_path)["config"]["source"] == "modelscope"
    assert brought(tmp_path).keys() == WANTED.keys() - {"all.CSV.gz"}
    assert get("hub", revision="main").returncode == 0
    assert record(tmp_path)["config"] == {"source": "hub", "id": "org/tiny", "revision": "main"}


def test_what_the_user_changed_is_refused_and_the_way_out_is_said(get: Get, tmp_path: Path) -> None:
    assert get("hub").returncode == 0
    os.truncate(tmp_path / "data/hub/org--tiny/data/train.jsonl", 10)
    said = one_line(get("hub"))
    assert "data/hub/org--tiny/data/train.jsonl has another size" in said
    assert "remove data/hub/org--tiny and run `make data`" in said
    (tmp_path / "data/hub/org--tiny/manifest.json").unlink()
    said = one_line(get("hub"))
    assert "did not write: move them away" in said and "--force" not in said
