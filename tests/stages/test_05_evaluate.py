"""Stage 05 on a finished tiny run, with two stand-ins for the servers whose answers are known."""

import json
import math
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest
from support import programs
from support.misbehaving import Handler, Server
from support.serving import Home, finished_run, reseal

from lockstep.endpoint import server_note


class Known(Handler):
    """Answers from a table, right or wrong; its tokens all have the same log-probability."""

    server: Any

    def do_POST(self) -> None:
        if self.path == "/v1/chat/completions":
            return super().do_POST()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        places = [None] + [{str(token): {"logprob": self.server.logprob}} for token in body["prompt"][1:]]
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": places}
        self.send({"id": "1", "object": "text_completion", "created": 1, "model": "r", "choices": [choice]})

    def stream(self, answer: str, fault: str) -> None:
        question = answer[::-1]
        super().stream(self.server.table.get(question, "no idea"), fault)


@contextmanager
def answering(table: dict[str, str], logprob: float) -> Iterator[Any]:
    server: Any = Server(("127.0.0.1", 0), Known)
    server.table, server.logprob = table, logprob
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()  # or who asks again would wait for an answer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return finished_run(tmp_path_factory.mktemp("home"), base=False)


@pytest.fixture(scope="module")
def references(home: Home) -> dict[str, str]:
    """Question → reference answer, of the test split."""
    from datasets import load_from_disk

    rows = load_from_disk(str(home.run / "data/test"))
    return {row["messages"][0]["content"]: row["messages"][-1]["content"] for row in rows}


def evaluate(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    return programs.run(home.folder, "05_evaluate.py", *home.words, *words)


def urls(base: Any, tuned: Any) -> tuple[str, ...]:
    return ("--evaluate.base_url", base.url, "--evaluate.tuned_url", tuned.url)


def test_a_run_that_is_served_is_refused_before_anything_is_asked(home: Home) -> None:
    folder = home.run / "serve"
    folder.mkdir(exist_ok=True)
    about = {"url": "http://127.0.0.1:9/v1", "model": "r", "mode": "merged", "served": {}, "grace": 0.0}
    server_note.write(folder, "open", **about)  # this process counts as the server
    with answering({}, -2.0) as base:
        ended = evaluate(home, "--evaluate.base_url", base.url, "--force")
        assert not base.seen
    (folder / "server.json").unlink()
    assert ended.returncode == 2 and '`make stop CONFIG= ARGS="--run r"` first, or have that one asked' in ended.stderr
    assert "--evaluate.tuned_url http://127.0.0.1:9/v1\n" in ended.stderr


def test_figures_report_and_sheet(home: Home, references: dict[str, str]) -> None:
    table = dict(list(references.items())[:-1])  # all but one right
    with answering({}, -2.0) as base, answering(table, -0.5) as tuned:
        words = (*urls(base, tuned), "--evaluate.sampling_rows", "2")
        answer = evaluate(home, *words)
        assert answer.returncode == 0, answer.stderr
        asked = len(tuned.seen)
        again = evaluate(home, *words)
        assert "outputs/r/eval is up to date" in again.stdout and len(tuned.seen) == asked
    folder = home.run / "eval"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    rows = len(references)
    assert metrics["rows"] == rows
    assert metrics["base"]["exact_match"]["value"] == 0
    assert metrics["tuned"]["exact_match"]["value"] == pytest.approx((rows - 1) / rows)
    assert metrics["tuned"]["perplexity"]["value"] == pytest.approx(math.exp(0.5))
    assert metrics["base"]["perplexity"]["value"] == pytest.approx(math.exp(2.0))
    assert metrics["verdict"].keys() == {name for name in metrics["base"] if name in metrics["verdict"]}
    for name in ("perplexity", "exact_match", "rouge_l", "bleu", "chrf", "distinct_2", "repetition_rate", "stop_rate"):
        assert {"value", "ci95"} <= metrics["tuned"][name].keys() and name in metrics["verdict"], name
    assert metrics["forgetting"]["base"]["prose_perplexity"]["value"] == pytest.approx(math.exp(2.0))
    ways = [row["sampling"] for row in metrics["samplings"]]
    assert (
        len(ways) == 8
        and ways[0]["temperature"] == 0
        and {way["repetition_penalty"] for way in ways} == {1.0, 1.1, 1.3}
    )
    assert all(row["exact_match"] is not None for row in metrics["samplings"])
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["tuned"]["answer"] == line["wanted"] for line in lines].count(True) == rows - 1

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://127.0.0.1", "").replace("http://www.w3.org", "") and "src=" not in page
    assert all(line["row"] in page for line in lines)
    assert metrics["answers"]["kind"] == "mixed" and "Perplexity" in answer.stdout
    assert (
        "What to do next" in page
        and "What to do next" in answer.stdout
        and "make evaluate CONFIG= ARGS=" in answer.stdout
    )
    chinese = evaluate(home, *words, "--lang", "zh")  # up to date: only the report is written again
    assert "outputs/r/eval 已是最新" in chinese.stdout and len(tuned.seen) == asked
    assert '<html lang="zh-CN">' in (folder / "report.html").read_text(encoding="utf-8")
    assert evaluate(home, "--report").returncode == 0

    sheet = home.run / "sheet.csv"
    text = sheet.read_text(encoding="utf-8-sig").splitlines()
    assert text[0] == "row,question,answer,wanted,accept,remark" and len(text) > rows // 2
    marked = sheet.read_text(encoding="utf-8-sig").replace(",,\n", ",yes,\n", 1).replace(",,\n", ",否,\n", 1)
    sheet.write_text(marked, encoding="utf-8")
    assert evaluate(home, "--report").returncode == 0
    people = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["people"]
    assert (people["rows"], people["accepted"]) == (2, 1)
    assert "A person accepted 1 of 2 tuned answers" in (folder / "report.html").read_text(encoding="utf-8")
    sheet.write_text(marked.replace(",yes,", ",perhaps,"), encoding="utf-8")
    failed = evaluate(home, "--report")
    assert failed.returncode == 2 and "accept is 'perhaps', and must be yes or no" in failed.stderr
    assert "is up to date" in evaluate(home, *words).stdout  # what was there still verifies


def test_a_server_that_dies_loses_no_answer_and_is_not_asked_twice(
    home: Home, references: dict[str, str], tmp_path: Path
) -> None:
    again = home.copy(tmp_path / "home")
    shutil.rmtree(again.run / "eval", ignore_errors=True)
    shutil.rmtree(again.run / "answers", ignore_errors=True)
    (again.run / "sheet.csv").unlink(missing_ok=True)
    with answering({}, -2.0) as base, answering(references, -0.5) as tuned:
        tuned.fault = lambda question, attempt: "reset" if len(tuned.seen) > 2 else ""
        stopped = evaluate(again, *urls(base, tuned), "--evaluate.concurrency", "1")
        assert stopped.returncode == 2 and "error: " in stopped.stderr
        assert not (again.run / "eval").exists()
        questions = len(base.seen)
        tuned.fault = lambda question, attempt: ""
        done = evaluate(again, *urls(base, tuned), "--evaluate.concurrency", "1")
        assert done.returncode == 0, done.stderr
        assert len(base.seen) == questions  # the base's answers were all there


def test_a_forced_evaluation_asks_anew_goes_on_when_stopped_and_leaves_a_running_one_alone(
    home: Home, references: dict[str, str], tmp_path: Path
) -> None:
    again = home.copy(tmp_path / "home")
    (again.run / "sheet.csv").unlink(missing_ok=True)

    def kept() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (again.run / "answers").iterdir()}

    with answering({}, -2.0) as base, answering(references, -0.5) as tuned:
        words = (*urls(base, tuned), "--evaluate.concurrency", "1", "--force")
        assert evaluate(again, *words).returncode == 0
        once, before = len(base.seen), kept()
        lock = filelock.FileLock(again.run / ".eval.lock")
        with lock:
            assert "is being written by" in evaluate(again, *words).stderr
        assert len(base.seen) == once and len(before) > 2 and kept() == before
        tuned.fault = lambda question, attempt: "reset" if len(tuned.seen) > once + 2 else ""
        assert evaluate(again, *words).returncode == 2
        assert len(base.seen) == 2 * once  # all anew
        tuned.fault = lambda question, attempt: ""
        assert evaluate(again, *words).returncode == 0
        assert len(base.seen) == 2 * once  # and gone on with


def test_a_report_is_not_made_of_another_models_figures(home: Home, tmp_path: Path) -> None:
    changed = home.copy(tmp_path / "home")
    reseal(changed.run / "merged", {"outputs/r/adapter": "0" * 64})  # as a merge of another adapter would be
    answer = evaluate(changed, "--report")
    assert (
        answer.returncode == 2 and "was made from another model or other data than what is there now" in answer.stderr
    )
    (changed.run / "eval/predictions.jsonl").write_text("{}\n")
    assert "has another size than when it was made" in evaluate(changed, "--report").stderr
    taken = evaluate(changed, "--evaluate.runs", "base")
    assert taken.returncode == 2 and taken.stderr.startswith("error: ")
    typo = evaluate(changed, "--report", "--run", "typo")
    assert typo.returncode == 2 and "there is no run typo" in typo.stderr


def test_the_adapter_is_asked_and_not_the_base_beside_it(home: Home, tmp_path: Path) -> None:
    again = home.copy(tmp_path / "home")
    shutil.rmtree(again.run / "eval", ignore_errors=True)
    shutil.rmtree(again.run / "answers", ignore_errors=True)
    (again.run / "sheet.csv").unlink(missing_ok=True)
    with answering({}, -2.0) as base, answering({}, -0.5) as tuned:
        tuned.models = ("r-base", "r")  # in the order in which vLLM lists them
        assert evaluate(again, *urls(base, tuned), "--evaluate.rows", "2").returncode == 0
        assert {body["model"] for body in tuned.seen} == {"r"}
        tuned.seen.clear()
        assert evaluate(again, *urls(tuned, tuned), "--evaluate.rows", "2", "--force").returncode == 0
        assert {body["model"] for body in tuned.seen} == {"r", "r-base"}  # a server of the adapter, asked for both
        tuned.models = ("r",)
        refused = evaluate(again, *urls(tuned, tuned), "--evaluate.rows", "1", "--force")
        assert refused.returncode == 2 and "lead to the same model, r at" in refused.stderr
        tuned.models = ("other", "another")
        refused = evaluate(again, *urls(base, tuned), "--evaluate.rows", "1", "--force")
        assert refused.returncode == 2 and "serves other, another, and not r" in refused.stderr
    gone = evaluate(again, *urls(base, tuned), "--evaluate.rows", "1", "--force")
    assert gone.returncode == 2 and gone.stderr.strip().splitlines()[-1].startswith("error: ")


def test_what_is_missing_is_named(home: Home, tmp_path: Path) -> None:
    bare = home.copy(tmp_path / "home")
    shutil.rmtree(bare.run / "merged")
    answer = evaluate(bare)
    assert answer.returncode == 2 and "outputs/r/merged is missing" in answer.stderr and "make merge" in answer.stderr
    shutil.rmtree(bare.run / "eval", ignore_errors=True)
    report = evaluate(bare, "--report")
    assert report.returncode == 0 and "report.html is written, without an evaluation" in report.stdout
    assert "Nothing was evaluated yet" in (bare.run / "report.html").read_text(encoding="utf-8")
