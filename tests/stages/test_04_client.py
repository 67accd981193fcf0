"""Stage 04 against a small OpenAI-compatible server that misbehaves in every way that servers do."""

import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from conftest import Run
from support.misbehaving import Handler, Server
from support.programs import ROOT, script_environment
from support.serving import free_port

from lockstep.endpoint import server_note

QUIET = ("--retries", "0")


def ask(stage: Run, server: Server, *words: str, **extra: str) -> CompletedProcess[str]:
    # a proxy that leads nowhere: loopback must not go through it
    return stage(
        "04_client_openai.py", "--run", "r", "--base-url", server.url, *words, HTTP_PROXY="http://127.0.0.1:9", **extra
    )


def error(answer: CompletedProcess[str]) -> str:
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_one_question_with_all_sampling_settings(stage: Run, server: Server, stream: tuple[str, ...]) -> None:
    answer = ask(
        stage,
        server,
        "你是谁？",
        "--input",
        "答",
        "--system",
        "s",
        "--sampling.top_k",
        "7",
        "--sampling.seed",
        "3",
        *stream,
    )
    assert (answer.returncode, answer.stdout) == (0, "答\n？谁是你\n")
    (body,) = server.seen
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "你是谁？\n答"}]
    wanted = {
        "model": "r",
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "repetition_penalty": 1.1,
        "max_tokens": 256,
        "seed": 3,
    }
    assert body.items() >= (wanted | {"presence_penalty": 0.0, "frequency_penalty": 0.0}).items()


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_a_part_of_an_answer_is_never_taken_for_a_whole_one(
    stage: Run, server: Server, stream: tuple[str, ...]
) -> None:
    server.mode = "no finish"
    assert "the answer broke off" in error(ask(stage, server, "hello", *stream, *QUIET))
    server.mode = "length"
    answer = ask(stage, server, "hello", *stream)
    assert answer.returncode == 0 and "[cut off at 256 tokens" in answer.stderr


def test_what_can_go_wrong_is_one_line(stage: Run, server: Server) -> None:
    assert "it serves r, r-base" in error(ask(stage, server, "hi", "--model", "gpt-4"))
    assert "the server refused (400): " in error(ask(stage, server, "this is too long"))
    assert "give one of" in error(ask(stage, server))
    assert "belong to a single question" in error(ask(stage, server, "--chat", "--curl"))
    assert "ends in /v1" in error(ask(stage, server, "hi", "--base-url", server.url.removesuffix("/v1") + "/v2"))
    assert "--batch needs --output" in error(ask(stage, server, "--batch", "x.jsonl"))
    assert "not 1000000000" in error(ask(stage, server, "hi", "--sampling.max_tokens", "1000000000"))
    server.key = "secret"
    assert "set LOCKSTEP_API_KEY" in error(ask(stage, server, "hi"))
    assert ask(stage, server, "hi", LOCKSTEP_API_KEY="secret").returncode == 0
    assert "--post needs a whole answer" in error(ask(stage, server, "hi", "--stream", "--post", "dedupe"))
    down = stage("04_client_openai.py", "hi", "--base-url", "http://127.0.0.1:9/v1", "--retries", "1")
    assert "trying again in" in down.stderr and "(1 of 1)" in down.stderr
    assert "no server answers at http://127.0.0.1:9/v1" in error(down)


def test_a_batch_keeps_its_order_and_each_row_has_its_answer_or_its_error(
    stage: Run, server: Server, tmp_path: Path
) -> None:
    rows = [
        {"instruction": f"question {n}", "input": "too long" if n == 3 else "", "output": str(n)} for n in range(20)
    ]
    tool = {"type": "function", "function": {"name": "f", "description": None, "parameters": None}}
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    rows.append({"instruction": "long ago", "history": [["a", "b"]], "system": "Be brief.", "tools": [tool]})
    rows.append(
        {"prompt": [{"role": "user", "content": "turns"}], "completion": [{"role": "assistant", "content": "c"}]}
    )
    rows.append({"prompt": [{"role": "user", "content": "turns"}]})
    rows.append({"messages": [{"role": "user", "content": "last"}]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n", encoding="utf-8")
    answer = ask(stage, server, "--batch", "in.jsonl", "--output", "out/answers.jsonl", "--concurrency", "4")
    assert "1 of 24 rows have no answer" in error(answer)
    assert "23 answers, 1 errors" in answer.stdout
    records = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["messages"][-1]["content"].split("\n")[0] for record in records] == [
        f"question {n}" for n in range(20)
    ] + ["long ago", "turns", "turns", "last"]
    assert [record["reference"] for record in records[21:23]] == ["c", None]
    (sent,) = [body for body in server.seen if "tools" in body]  # all that a row of training data may hold goes along
    assert sent["messages"] == [*asked, {"role": "user", "content": "long ago"}] and sent["tools"] == [tool]
    assert [n for n, record in enumerate(records) if "error" in record] == [3]
    assert (
        records[5]["answer"] == "5 noitseuq"
        and records[5]["finish_reason"] == "stop"
        and records[5]["reference"] == "5"
    )


def test_a_batch_that_cannot_be_read_or_answered_makes_no_file(stage: Run, server: Server, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"instruction": "a"}\n{"no": 1}\n')
    told = error(ask(stage, server, "--batch", "in.jsonl", "--output", "out.jsonl"))
    assert "in.jsonl:2 is no question: missing instruction" in told
    assert "cannot read absent" in error(ask(stage, server, "--batch", "absent", "--output", "out.jsonl"))
    (tmp_path / "in.jsonl").write_text('{"instruction": "a"}\n')
    assert "no model 'x'" in error(ask(stage, server, "--batch", "in.jsonl", "--output", "out.jsonl", "--model", "x"))
    assert "must be a new file" in error(ask(stage, server, "--batch", "in.jsonl", "--output", "in.jsonl"))
    assert "must be a new file" in error(ask(stage, server, "--batch", "in.jsonl", "--output", str(tmp_path)))
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "holds no rows" in error(ask(stage, server, "--batch", "empty.jsonl", "--output", "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def test_the_curl_line_sends_the_same_body(stage: Run, server: Server) -> None:
    line = ask(stage, server, "它's 你？", "--curl").stdout
    assert not server.seen
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"] == "？你 s'它"
    assert ask(stage, server, "它's 你？").returncode == 0
    assert server.seen[0] == server.seen[1]
    line = ask(stage, server, "--curl").stdout  # without a question and without data
    subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert server.seen[2] == server.seen[0] | {"messages": [{"role": "user", "content": "你是谁？"}]}
    example = ask(stage, server, "--example")  # the same question, shown and asked
    assert (example.stdout, example.stderr) == ("？谁是你\n", "[user] 你是谁？\n")
    assert server.seen[3]["messages"] == server.seen[2]["messages"]
    assert "give one of" in error(ask(stage, server, "hello", "--example"))


def test_chat_keeps_its_history_and_a_failed_turn_leaves_it(stage: Run, server: Server, tmp_path: Path) -> None:
    talk = subprocess.run(
        [sys.executable, str(ROOT / "scripts/04_client_openai.py"), "--run", "r", "--base-url", server.url, "--chat"],
        input="ab\n\ntoo long\ncd\n", env=script_environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert talk.returncode == 0, talk.stderr
    assert "ba" in talk.stdout and "dc" in talk.stdout and "refused (400)" in talk.stderr
    assert [m["content"] for m in server.seen[-1]["messages"]] == ["ab", "ba", "cd"]


@pytest.mark.parametrize("stream", [(), ("--stream",)])
@pytest.mark.parametrize(
    "fault",
    ["reset", "503", "in the content", "no finish"],
)
def test_what_fails_before_anything_is_shown_is_asked_again(
    stage: Run, server: Server, fault: str, stream: tuple[str, ...]
) -> None:
    """Whatever went wrong the first time, the answer is shown once and whole, or as what it is: a part."""
    server.fault = lambda question, attempt: fault if attempt == 0 else ""
    answer = ask(stage, server, "olleh", *stream, "--retries", "1")
    shown_in_part = stream and fault not in ("reset", "500", "429", "503", "after headers")
    if shown_in_part:
        assert error(answer).startswith("error: the answer above is incomplete: ")
        assert answer.stdout == ("hello\n" if fault in ("no finish", "abort", "empty", "none") else "h\n")
        assert server.tries["olleh"] == 1
    else:
        assert (answer.returncode, answer.stdout) == (0, "hello\n"), answer.stderr
        notice = (
            "still being checked and opens when it has passed the gate: waiting"
            if fault == "503"
            else "trying again in"
        )
        assert notice in answer.stderr and server.tries["olleh"] == 2


def test_a_connection_that_breaks_after_the_finish_reason_takes_nothing_away(stage: Run, server: Server) -> None:
    server.mode = "after the finish reason"
    answer = ask(stage, server, "olleh", "--stream", *QUIET)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "hello\n", "")


def test_an_error_inside_a_stream_is_one(stage: Run, server: Server) -> None:
    server.mode = "error event"
    answer = ask(stage, server, "olleh", "--stream")
    assert "incomplete: the server failed in the middle of the answer: the engine died" in error(answer)


def test_a_hung_server_is_noticed(stage: Run, server: Server) -> None:
    for fault, stream in (("hang", ()), ("hang", ("--stream",)), ("hang in the content", ("--stream",))):
        server.mode, started = fault, time.monotonic()
        answer = ask(stage, server, "olleh", *stream, "--timeout", "0.5")
        assert "silent for 0.5 s" in error(answer) and time.monotonic() - started < 10
        assert ("incomplete" in answer.stderr) == (fault != "hang")


def test_statistics_and_post_processing(stage: Run, server: Server) -> None:
    answer = ask(stage, server, "olleh", "--stream", "--stats")
    assert answer.stdout == "hello\n"
    assert "prompt 5 tokens, answer 5 tokens at" in answer.stderr and "first token after" in answer.stderr
    looped = "我愿为姐姐尽义务，" * 5 + "再见。"
    answer = ask(stage, server, f"repeat {looped}", "--post", "dedupe")
    assert answer.stdout == "我愿为姐姐尽义务，再见。\n" and "[repeated phrases were taken out]" in answer.stderr
    assert ask(stage, server, f"repeat {looped}").stdout == looped + "\n"


def test_help_comes_at_once(stage: Run) -> None:
    before = os.times()
    assert "--batch" in stage("04_client_openai.py", "--help").stdout
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 1  # of work: other programs may make it wait
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "scripts/04_client_openai.py"), "--help"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    for name in ("openai", "httpx2", "torch", "transformers", "numpy", "vllm", "tqdm"):
        assert not re.search(rf"\| +{name}$", loaded, flags=re.MULTILINE), name


# ---- batches ----


def write_rows(file: Path, count: int) -> list[str]:
    questions = [f"问题 {number} ?" for number in range(count)]
    file.write_text("".join(json.dumps({"instruction": one}) + "\n" for one in questions), encoding="utf-8")
    return questions


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


FAULTS = ("429", "500", "503", "reset", "after headers", "in the content", "in a chunk", "no finish", "not json",
          "error event", "after the finish reason", "length")  # fmt: skip


def test_two_thousand_rows_with_faults_at_random_end_as_the_right_answer_or_an_error(
    stage: Run, server: Server, tmp_path: Path
) -> None:
    questions = write_rows(tmp_path / "in.jsonl", 2000)
    chance = random.Random(7)
    faults = {one: [chance.choice(FAULTS) if chance.random() < 0.1 else "" for _ in range(2)] for one in questions}
    server.fault = lambda question, attempt: faults[question][attempt] if attempt < 2 and question in faults else ""
    words = ("--batch", "in.jsonl", "--output", "out.jsonl", "--concurrency", "64", "--retries", "1", "--wait", "0")
    answer = ask(stage, server, *words, "--stats")
    rows = lines_of(tmp_path / "out.jsonl")
    assert [row["row"] for row in rows] == list(range(2000))
    ends = ("", "after the finish reason", "length")
    for question, row in zip(questions, rows, strict=True):
        assert row["messages"][-1]["content"] == question
        final = faults[question][0] if faults[question][0] in ends else faults[question][1]
        if final in ends:
            assert row["answer"] == question[::-1]
            assert row["finish_reason"] == ("length" if final == "length" else "stop")
        else:
            assert row["error"] and "answer" not in row
    failed = sum("error" in row for row in rows)
    assert failed > 3 and f"{failed} of 2000 rows have no answer" in error(answer)
    assert "latency p50" in answer.stderr and "cut off at max_tokens" in answer.stdout
    # the same command asks only those again
    before = len(server.seen)
    again = ask(stage, server, *words)
    assert again.returncode == 0 and f"asking {failed} rows again" in again.stderr
    assert len(server.seen) - before == failed
    assert [row["answer"] for row in lines_of(tmp_path / "out.jsonl")] == [one[::-1] for one in questions]
    assert "up to date" in ask(stage, server, *words).stdout


def start(server: Server, home: Path, *words: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(ROOT / "scripts/04_client_openai.py"),
        "--run",
        "r",
        "--base-url",
        server.url,
        *words,
    ]
    return subprocess.Popen(command, env=script_environment(home), cwd=home, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_batch_that_is_killed_anywhere_goes_on_and_gives_the_same_file(
    stage: Run, server: Server, tmp_path: Path, number: signal.Signals
) -> None:
    write_rows(tmp_path / "in.jsonl", 120)
    words = ("--batch", "in.jsonl", "--concurrency", "4", "--output")
    assert ask(stage, server, *words, "whole.jsonl").returncode == 0
    server.slow = 0.01
    partial = tmp_path / ".out.jsonl.partial"
    for wanted in (2, 30, 70, 119):
        client = start(server, tmp_path, *words, "out.jsonl")
        while client.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") - 1 < wanted):
            time.sleep(0.005)
        client.send_signal(number)
        _, said = client.communicate(timeout=10)
        assert "Traceback" not in said
        if number == signal.SIGINT and client.returncode:
            assert client.returncode == 130 and "run the same command again" in said
        if (tmp_path / "out.jsonl").exists():  # the kill came in the last moment
            assert len(lines_of(tmp_path / "out.jsonl")) == 120
    if partial.exists():
        with partial.open("ab") as stream:
            stream.write(b'{"row": 3, "answer": "torn of')
    answer = ask(stage, server, *words, "out.jsonl")
    assert answer.returncode == 0, answer.stderr
    assert without_times(lines_of(tmp_path / "out.jsonl")) == without_times(lines_of(tmp_path / "whole.jsonl"))
    # what was in flight at a kill is asked twice, and nothing else
    assert len(server.seen) <= 240 + 4 * 5 + 4


def test_a_batch_whose_server_dies_keeps_what_was_answered(stage: Run, server: Server, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", 60)
    server.fault = lambda question, attempt: "reset" if len(server.seen) > 40 else ""
    words = ("--batch", "in.jsonl", "--output", "out.jsonl", "--concurrency", "4", "--retries", "1")
    line = error(ask(stage, server, *words))
    kept = (tmp_path / ".out.jsonl.partial").read_bytes().count(b"\n") - 1
    assert 36 <= kept <= 40 and f"{kept} of 60 rows are done, and the same command goes on" in line
    server.fault = lambda question, attempt: ""
    answer = ask(stage, server, *words)
    assert answer.returncode == 0 and f"going on: {kept} of 60 rows are done" in answer.stderr
    assert [row["row"] for row in lines_of(tmp_path / "out.jsonl")] == list(range(60))
    assert not (tmp_path / ".out.jsonl.partial").exists()


def test_a_batch_on_a_hung_server_stops_and_one_slow_row_does_not_stop_it(
    stage: Run, server: Server, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", 20)
    words = ("--batch", "in.jsonl", "--output", "out.jsonl", "--concurrency", "4", "--timeout", "0.7")
    server.fault = lambda question, attempt: "hang" if question == "问题 3 ?" else ""
    assert "1 of 20 rows have no answer" in error(ask(stage, server, *words))
    assert "silent" in lines_of(tmp_path / "out.jsonl")[3]["error"]
    server.mode, server.fault = "hang", lambda question, attempt: "hang"
    line = error(ask(stage, server, *words, "--force"))
    assert "silent for 0.7 s" in line and "0 of 20 rows are done" in line
    assert len(lines_of(tmp_path / "out.jsonl")) == 20  # the old file stands until a new one is whole


def test_answers_are_never_replaced_without_a_word(stage: Run, server: Server, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", 10)
    words = ("--batch", "in.jsonl", "--output", "out.jsonl")
    (tmp_path / "out.jsonl").write_text("mine\n")
    assert "answers other questions" in error(ask(stage, server, *words))
    assert ask(stage, server, *words, "--force").returncode == 0
    assert "replace it with --force" in error(ask(stage, server, *words, "--sampling.temperature", "0"))
    server.fault = lambda question, attempt: "reset" if len(server.seen) > 14 else ""
    error(ask(stage, server, *words, "--sampling.seed", "1", "--force", *QUIET))
    server.fault = lambda question, attempt: ""
    other = ask(stage, server, *words, "--sampling.seed", "2", "--force")
    assert other.returncode == 0 and re.search(r"starting afresh: \.out\.jsonl\.\w{16}\.partial keeps", other.stderr)
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_text("".join(lines[:-1]))
    assert "answers other questions" in error(ask(stage, server, *words, "--sampling.seed", "2"))


def test_a_batch_keeps_the_raw_answer_where_it_was_changed(stage: Run, server: Server, tmp_path: Path) -> None:
    looped = "I will do my duty. " * 3
    rows = [{"messages": [{"role": "user", "content": f"repeat {looped}"}, {"role": "assistant", "content": "wanted"}]},
            {"instruction": "ba"}]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--batch", "in.jsonl", "--output", "out.jsonl", "--post", "dedupe", "--system", "s")
    assert ask(stage, server, *words).returncode == 0
    first, second = lines_of(tmp_path / "out.jsonl")
    assert (first["answer"], first["answer_raw"]) == ("I will do my duty. ", looped)
    assert first["reference"] == "wanted" and [m["role"] for m in first["messages"]] == ["system", "user"]
    assert second["answer"] == "ab" and "answer_raw" not in second


def test_what_utf8_cannot_hold_is_an_error_of_its_row(stage: Run, server: Server, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"instruction": "half \\ud83d"}\n{"instruction": "ab"}\n')
    answer = ask(stage, server, "--batch", "in.jsonl", "--output", "out.jsonl")
    assert "1 of 2 rows" in error(answer)
    first, second = lines_of(tmp_path / "out.jsonl")
    assert first["error"] == "no question: lone surrogate instruction" and second["answer"] == "ba"


# ---- the chat ----


def test_the_commands_of_a_chat(stage: Run, server: Server, tmp_path: Path) -> None:
    lines = ["你好", "/system 你是甄嬛", "/set temperature 0.2", "/set temperature 9", "/set temprature 1", "ab", "/retry",
             "/reset", "/stats", "/nonsense", "/etc/passwd", "/system none", "/set seed 7", "/set seed none", "cd",
             "/help", "/system"]  # fmt: skip
    client = start_chat(server, tmp_path, stdin=subprocess.PIPE)
    out, said = client.communicate("\n".join(lines) + "\n", timeout=60)
    assert client.returncode == 0 and out == "好你\nba\nba\ndwssap/cte/\ndc\n"
    bodies = server.seen
    assert [m["content"] for m in bodies[1]["messages"]] == ["你是甄嬛", "你好", "好你", "ab"]
    assert bodies[2] == bodies[1] and bodies[1]["temperature"] == 0.2
    assert [m["content"] for m in bodies[3]["messages"]] == ["你是甄嬛", "/etc/passwd"]
    assert [m["role"] for m in bodies[4]["messages"]] == ["user", "assistant", "user"] and "seed" not in bodies[4]
    for wanted in ("error: temperature: input should be less than or equal to 2 (got '9')", "error: no setting 'temprature'",
                   "error: no command /nonsense", "stats on", "answer 11 tokens", "seed 7", "/retry", "system: none"):  # fmt: skip
        assert wanted in said, wanted


def start_chat(server: Server, home: Path, *words: str, **streams: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/04_client_openai.py"), "--run", "r", "--base-url", server.url, "--chat", *QUIET, *words],
        env=script_environment(home, TERM="xterm"), text=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )  # fmt: skip


def test_a_terminal_takes_a_paste_as_one_question_and_ctrl_c_stops_only_the_answer(
    server: Server, tmp_path: Path
) -> None:
    server.mode = "hang in the content"
    main, side = pty.openpty()
    client = start_chat(server, tmp_path, stdin=side, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    seen = b""

    def until(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            assert select.select([main], [], [], 30)[0], seen
            seen += os.read(main, 4096)
        seen = seen.split(wanted, 1)[1]

    until(b"> ")
    os.write(main, "第一行\nline two\n".encode())
    until(b"two")
    until(b"o")  # the answer's first letter; then the server hangs
    os.kill(client.pid, signal.SIGINT)
    until(b"[stopped: this turn does not count]")
    until(b"> ")
    server.mode = ""
    os.write(main, "再来\n".encode())
    until("来再".encode())
    until(b"> ")
    os.write(main, b"/retry\n")
    until("来再".encode())
    until(b"> ")
    os.write(main, b"\x04")
    assert client.wait(timeout=10) == 0
    os.close(main)
    assert [body["messages"][-1]["content"] for body in server.seen] == ["第一行\nline two", "再来", "再来"]
    assert [len(body["messages"]) for body in server.seen] == [1, 1, 1]


def test_an_answer_does_not_steer_the_terminal(server: Server, tmp_path: Path) -> None:
    hide = "\x1b[8m\x1b]0;title\x07\x9b8m"
    for terminal in (True, False):
        main, side = pty.openpty()
        asked = ("--run", "r", "--base-url", server.url, "repeat " + hide + "end")
        words = [sys.executable, str(ROOT / "scripts/04_client_openai.py"), *asked]
        out = side if terminal else subprocess.PIPE
        said = subprocess.run(words, env=script_environment(tmp_path), stdout=out, stderr=subprocess.PIPE, check=True)
        shown = os.read(main, 4096) if terminal else said.stdout
        os.close(main), os.close(side)
        assert (hide.encode() in shown) is not terminal and b"[8m" in shown and b"end" in shown


def test_a_chat_can_take_loops_out(server: Server, tmp_path: Path) -> None:
    client = start_chat(server, tmp_path, "--post", "dedupe", stdin=subprocess.PIPE)
    out, _ = client.communicate("repeat " + "我愿为姐姐尽义务，" * 5 + "\nab\n", timeout=60)
    assert out == "我愿为姐姐尽义务，\nba\n"
    assert server.seen[-1]["messages"][1]["content"] == "我愿为姐姐尽义务，"


def test_a_question_waits_for_this_runs_server_and_without_one_it_fails_at_once(stage: Run, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "outputs/r/serve"
    words = ("olleh", "--run", "r", "--serve.port", str(port))
    started = time.monotonic()
    nobody = stage("04_client_openai.py", *words)
    assert f"no server answers at http://127.0.0.1:{port}/v1: start one with `make serve CONFIG=" in error(nobody)
    assert nobody.stderr.count("\n") == 1 and time.monotonic() - started < 30  # and not after all retries
    folder.mkdir(parents=True)
    about = {"url": f"http://127.0.0.1:{port}/v1", "model": "r", "mode": "merged", "served": {}, "grace": 1}
    server_note.write(folder, "starting", **about)
    late = stage("04_client_openai.py", *words, "--wait", "1")
    assert "the server is still starting after 1 s (--wait): see `make status CONFIG=" in error(late)
    command = [sys.executable, str(ROOT / "scripts/04_client_openai.py"), *words]
    asking = subprocess.Popen(
        command,
        env=script_environment(tmp_path),
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asking.stderr and "waiting up to 900 s" in asking.stderr.readline()
    with Server(("127.0.0.1", port), Handler) as opened:
        threading.Thread(target=opened.serve_forever, daemon=True).start()
        answer, notices = asking.communicate(timeout=60)
        opened.shutdown()
    assert (asking.returncode, answer, notices) == (0, "hello\n", "")
