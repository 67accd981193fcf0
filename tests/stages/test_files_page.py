"""docs/files.md beside a real run: every file is on the page, and every JSON file has the keys that it tells."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import files_page
from support.misbehaving import Server
from support.programs import run
from support.serving import Home
from support.world import Likely

import demo
from lockstep.endpoint import server_note

OWN_SECTIONS = {"manifest.json", "--output FILE"}  # of the page, that name no place
SERVED = {"outputs/<run>/serve/gate_report.json", "outputs/<run>/serve/server.json"}  # tests/e2e has a real server
VERIFIED = {"outputs/verify/verify.json"}  # tests/stages/test_verify.py has it
DEMO = {"outputs/demo/demo.json"}  # no demo was run here: its figures are made of this run


@pytest.fixture(scope="module")
def home(finished: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The finished run, evaluated against a stand-in; beside it a run with rows that are dropped, and one that failed."""
    folder = tmp_path_factory.mktemp("files") / "home"
    copy = finished.copy(folder)
    server = Server(("127.0.0.1", 0), Likely)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    urls = ("--evaluate.base_url", server.url, "--evaluate.tuned_url", server.url)
    copy.stage("05_evaluate.py", *urls, "--evaluate.sampling_rows", "2")
    rows = copy.origin / "rows.jsonl"
    run(folder, "04_client_openai.py", "--run", "r", "--batch", str(rows), "--output", str(folder / "answers.jsonl"),
        "--base-url", server.url).check_returncode()  # fmt: skip
    server.shutdown()
    server.server_close()

    model = ("--model.name", "tiny", "--model.source", "local", "--model.path", str(copy.origin / "tiny"))
    spoilt = folder / "spoilt.jsonl"
    more = [
        '{"instruction": "a", "output": 1}',
        "{",
        '{"instruction": "{{NAME}}", "output": "d", "source": "s"}',
        '{"instruction": "a  b \\n\\n\\n c", "output": "x   y \\n"}',
    ]
    more += [json.dumps({"instruction": f"question {number}", "output": "always this"}) for number in range(9)]
    spoilt.write_text(rows.read_text(encoding="utf-8") + "\n".join(more) + "\n", encoding="utf-8")
    words = (*model, "--data.clean", "whitespace", "--data.train_file", str(spoilt))
    run(folder, "01_data_collator.py", "--run", "cleaned", *words).check_returncode()
    assert run(folder, "01_data_collator.py", "--run", "failed", *words, "--data.max_reject_share", "0").returncode == 2
    yield copy


def present(home: Home) -> list[str]:
    """Every file of the home that is not for Lockstep alone."""
    names = [
        file.relative_to(home.folder).as_posix()
        for top in ("models", "outputs")
        for file in (home.folder / top).rglob("*")
        if file.is_file()
    ]
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def test_every_file_is_on_the_page_and_what_it_promises_is_there(home: Home) -> None:
    patterns, names = files_page.files(), present(home)
    told = [name for name in names if any(files_page.matches(pattern, name) for pattern in patterns)]
    assert told == names
    promised = [pattern for pattern in patterns if not pattern.endswith("?")]
    assert [pattern for pattern in promised if not any(files_page.matches(pattern, name) for name in names)] == []


def sections() -> list[str]:
    text = files_page.PAGE.read_text(encoding="utf-8").split("\n## ")[2]
    return [line[5:-1] for line in text.splitlines() if line.startswith("### `")]


@pytest.mark.parametrize("name", sorted(set(sections()) - OWN_SECTIONS - SERVED - VERIFIED - DEMO))
def test_a_json_file_has_the_keys_that_the_page_tells(home: Home, name: str) -> None:
    files = [home.folder / file for file in present(home) if files_page.matches(name, file)]
    assert files
    assert files_page.faults(name, *(value for file in files for value in files_page.documents(file))) == []


def test_every_manifest_has_the_keys_that_the_page_tells(home: Home) -> None:
    files = [
        home.folder / name for name in present(home) if name.endswith("/manifest.json") and "checkpoint" not in name
    ]
    assert len(files) >= 6
    assert files_page.faults("manifest.json", *(value for file in files for value in files_page.documents(file))) == []


def test_a_batchs_answers_have_the_keys_that_the_page_tells(home: Home) -> None:
    assert files_page.faults("--output FILE", *files_page.documents(home.folder / "answers.jsonl")) == []


def test_the_demos_figures_have_the_keys_that_the_page_tells(home: Home) -> None:
    rows = files_page.documents(home.run / "eval/predictions.jsonl")
    (metrics,) = files_page.documents(home.run / "eval/metrics.json")
    result = demo.figures(rows, metrics["verdict"], dict.fromkeys(demo.STAGES, 1.0))
    assert files_page.faults("outputs/demo/demo.json", result) == []


def test_a_servers_note_has_the_keys_that_the_page_tells(tmp_path: Path) -> None:
    about: dict[str, Any] = {
        "url": "http://127.0.0.1:9/v1",
        "model": "r",
        "mode": "merged",
        "served": {"a": "b"},
        "grace": 35.0,
    }
    server_note.write(tmp_path, "open", **about)
    note = json.loads((tmp_path / "server.json").read_text(encoding="utf-8"))
    assert note.keys() == server_note.Note.model_fields.keys()
    assert files_page.faults("outputs/<run>/serve/server.json", note) == []


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"rows": 1, "list": [{"a": 1}]}, None),
        ({"rows": 1, "list": [], "more": 2}, "x.more is not on the page"),
        ({"list": [{"a": 1}]}, "x.rows is on the page only"),
        ({"rows": {"b": 1}, "list": [{"a": 1}]}, "x.rows.b is not on the page"),
        ({"rows": 1, "list": [{"a": 1, "b": 2}]}, "x.list[].b is not on the page"),
    ],
)
def test_what_differs_from_the_page_is_seen(value: Any, fault: str | None) -> None:
    key = files_page.Key()
    for path in ("rows", "list[].a", "some?.<name>"):
        key.add(path)
    assert list(key.faults(value, "x")) == ([fault] if fault else [])
