"""Stage 04: ask the endpoint: one question, a stream, a chat, or a file of questions.

Reads   the endpoint of make serve (or --base-url)
Writes  nothing, or --output FILE with one JSON line per row of --batch FILE
Run     make client ARGS='"Who are you?" --stream'
        python scripts/04_client_openai.py --config configs/demo.yaml "Who are you?" --stream --stats
        python scripts/04_client_openai.py --config configs/demo.yaml "请以沈清漪的口吻回答。" --input "你是谁？"
        python scripts/04_client_openai.py --config configs/demo.yaml --chat
        python scripts/04_client_openai.py --config configs/demo.yaml --batch data/toy/test.jsonl --output answers.jsonl

A batch that was stopped, in whatever way, goes on when the same command runs again; once it has ended, the same
command asks the rows again that have an error. A server that is starting or being checked is waited for. A server
with a key needs LOCKSTEP_API_KEY in the environment.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import filenames, lineage, manifest
from lockstep.client import loop_removal, openai_client, question_file, server_wait
from lockstep.client.batch_file import AnswerRecord, BatchFile, key_of
from lockstep.client.conversation import Conversation
from lockstep.client.openai_client import Answer, Endpoint
from lockstep.client.question_file import Question
from lockstep.client.request_errors import NoAnswer
from lockstep.client.server_wait import ServerWait
from lockstep.data import sample_question
from lockstep.endpoint import address, curl_line, server_note
from lockstep.errors import INTERRUPTED, UserError
from lockstep.prompts import template_source
from lockstep.settings import cli
from lockstep.settings.schema import Data
from lockstep.settings.tree import Settings
from lockstep.text import json_text
from lockstep.text.unicode import drop_controls, printable

note = partial(cli.say, to_stderr=True, flush=True)  # everything that is no answer
POST: dict[str, Callable[[str], str]] = {"dedupe": loop_removal.remove}


# ---- one question ----


def show(piece: str) -> None:
    """Print a piece of an answer; to a terminal without control sequences, which could hide our notes on it."""
    text = drop_controls(piece) if sys.stdout.isatty() else piece
    print(printable(text), end="", flush=True)


def answer(server: Endpoint, body: dict[str, Any], stream: bool, post: str | None, stats: bool) -> str:
    """Ask, print the answer and the notes on it; returns its text, after its thought if it has one."""
    try:
        reply = server.ask(body, stream, show if stream and not post else None)
    except NoAnswer as error:
        if error.shown:
            print()
        raise
    text = POST[post](reply.text) if post else reply.text
    if not stream or post:
        show(text)
    print()
    if text != reply.text:
        note("[repeated phrases were taken out]")
    if reply.finish_reason == "length":
        note(f"[cut off at {body['max_tokens']} tokens: raise --sampling.max_tokens]")
    if stats:
        note(f"[{statistics_of(reply)}]")
    return replace(reply, text=text).whole


def statistics_of(reply: Answer) -> str:
    parts = [f"prompt {reply.prompt_tokens} tokens"] if reply.prompt_tokens is not None else []
    if reply.completion_tokens is not None:
        parts.append(f"answer {reply.completion_tokens} tokens at {reply.completion_tokens / reply.seconds:.1f}/s")
    if reply.first_token_seconds is not None:
        parts.append(f"first token after {reply.first_token_seconds:.2f} s")
    return ", ".join([*parts, f"{reply.seconds:.2f} s in all"])


# ---- a chat ----


def chat(server: Endpoint, talk: Conversation, model: str, post: str | None) -> None:
    """A conversation in the terminal. A turn that fails or is stopped leaves the history as it was."""
    note(f"chatting with {model}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat")
    for line in typed_lines():
        try:
            outcome = talk.command(line)
            if outcome is not None:
                note(outcome)
                continue
            messages = talk.ask_again() if line.strip() == "/retry" else talk.ask(line)
            talk.add(answer(server, openai_client.request(talk.sampling, model, messages), True, post, talk.stats))
        except UserError as error:
            note(f"error: {' '.join(str(error).split())}")
        except KeyboardInterrupt:
            note("\n[stopped: this turn does not count]")


def typed_lines() -> Iterator[str]:
    """What the user types, until Ctrl-D; lines that are pasted together are one entry."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits with it, Chinese, too, and takes a paste as one line
    terminal = sys.stdin.isatty()
    while True:
        try:
            lines = [input("> " if terminal else "")]
            while terminal and select.select([sys.stdin], [], [], 0.05)[0]:
                lines.append(input())
        except EOFError:
            return print() if terminal else None
        except KeyboardInterrupt:
            note()
            continue
        if any(line.strip() for line in lines):
            yield "\n".join(lines)


# ---- a file of questions ----


def answer_batch(server: Endpoint, settings: Settings, model: str, data: Data, chosen: argparse.Namespace) -> None:
    """Give every row its answer or its error; the file appears when it is whole."""
    questions = list(question_file.read(chosen.batch, data, chosen.system))
    if not questions:
        raise UserError(f"{chosen.batch} holds no rows")
    paths.make_parent(chosen.output)
    body = openai_client.request(settings.sampling, model, [])
    weights = served_weights(settings, chosen.base_url)
    key = key_of([body, [asdict(question) for question in questions], chosen.post, weights])
    with BatchFile(chosen.output, key, len(questions), chosen.force) as file:
        if file.finished:
            return print(f"{chosen.output} is up to date")
        if file.news:
            note(file.news)
        started = time.monotonic()
        rows = fill(file, lambda number: record(server, body, questions[number], chosen.post), chosen.concurrency)
        file.publish()
    if chosen.stats and rows:
        note(f"[{totals(rows, time.monotonic() - started)}]")
    summarize(chosen.output)


def record(server: Endpoint, body: dict[str, Any], question: Question, post: str | None) -> AnswerRecord:
    """The line of the output for a question."""
    if question.fault:
        return {"messages": question.messages, "reference": None, "error": question.fault}
    asked = {"messages": question.messages} | ({"tools": question.tools} if question.tools else {})
    # without a choice of tools a call comes as the text that the model was trained to write
    answered = server.record(body | asked | ({"tool_choice": "none"} if question.tools else {}))
    row = asked | {"reference": question.reference} | answered
    if post and "answer" in row and (text := POST[post](row["answer"])) != row["answer"]:
        row |= {"answer": text, "answer_raw": row["answer"]}
    return row


def fill(file: BatchFile, work: Callable[[int], AnswerRecord], concurrency: int) -> list[AnswerRecord]:
    """Have the missing rows answered, with a progress bar; returns the figures that `totals` needs."""
    from tqdm import tqdm

    figures = ("answer", "prompt_tokens", "completion_tokens", "seconds")
    try:
        with tqdm(total=file.rows, initial=len(file.done), unit=" rows", disable=None) as bar:
            rows = []
            for row in file.fill(work, concurrency):
                bar.update()
                rows.append({key: row.get(key) for key in figures})
    except UserError as error:
        done = f"{len(file.done)} of {file.rows} rows are done"
        raise UserError(f"{error}; {done}, and the same command goes on") from error
    return rows


def totals(rows: list[AnswerRecord], seconds: float) -> str:
    """Tokens, speed and latency of the rows that this run answered."""
    times = sorted(row["seconds"] for row in rows if row["answer"] is not None) or [0.0]
    p50, p95 = (times[round(share * (len(times) - 1))] for share in (0.5, 0.95))
    prompt, completion = (sum(row[key] or 0 for row in rows) for key in ("prompt_tokens", "completion_tokens"))
    return (
        f"{len(rows)} rows in {seconds:.1f} s: prompts {prompt} tokens, answers {completion} tokens at "
        f"{completion / seconds:.1f}/s; latency p50 {p50:.2f} s, p95 {p95:.2f} s"
    )


def summarize(output: Path) -> None:
    """Count the answers and errors in the finished file. Raises UserError where there are errors."""
    cut = failed = count = 0
    for _, row in json_text.json_lines(output):
        count, failed, cut = count + 1, failed + ("error" in row), cut + (row.get("finish_reason") == "length")
    print(f"{output}: {count - failed} answers, {failed} errors" + (f", {cut} cut off at max_tokens" if cut else ""))
    if failed:
        raise UserError(
            f"{failed} of {count} rows have no answer: see `error` in {output}; the same command asks them again"
        )


def served_weights(settings: Settings, base_url: str | None) -> Any:
    """What identifies the model behind a name: digests of the run's own, the address of another one."""
    folders = (settings.run_dir / filenames.ADAPTER, settings.run_dir / filenames.MERGED)
    loaded = server_note.served(address.serve_dir(settings))  # by a server that runs; the folders may be newer
    digests = []
    for folder in folders:
        if (folder / filenames.MANIFEST).exists():
            digests.append(loaded.get(paths.label(folder)) or manifest.read(folder).digest)
    return base_url or [settings.serve.mode, digests]


# ---- the command line ----


def options() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "", "serve", "sampling")
    parser.add_argument("question", nargs="?", help="what to ask")
    parser.add_argument("--input", default="", help="Alpaca's input field, folded into the question as in training")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--example", action="store_true", help="ask a question of the run's own data")
    parser.add_argument("--stream", action="store_true", help="show the answer while it is made")
    parser.add_argument("--chat", action="store_true", help="talk, with history; /help lists its commands")
    parser.add_argument(
        "--batch", type=Path, metavar="FILE", help="rows of any kind that training takes, with or without answers"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where --batch writes its answers")
    parser.add_argument("--force", action="store_true", help="let --batch replace other answers in --output")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time in --batch [16]")
    parser.add_argument("--post", choices=POST, help="dedupe: take phrases out that an answer repeats in a loop")
    parser.add_argument("--stats", action="store_true", help="tokens, speed and latency, on stderr")
    retries, timeout, wait = openai_client.RETRIES, openai_client.TIMEOUT, server_wait.SECONDS
    text = f"tries after the first, while nothing of an answer is shown [{retries}]"
    parser.add_argument("--retries", type=int, default=retries, metavar="N", help=text)
    text = f"silence after which the server counts as hung [{timeout:g}]"
    parser.add_argument("--timeout", type=float, default=timeout, metavar="SECONDS", help=text)
    text = f"longest wait for a server that is starting or being checked; 0: none [{wait:g}]"
    parser.add_argument("--wait", type=float, default=wait, metavar="SECONDS", help=text)
    parser.add_argument("--model", help="the served model's name [the run's name]")
    parser.add_argument("--base-url", help="the endpoint, ending in /v1 [from serve.host and serve.port]")
    parser.add_argument(
        "--curl",
        action="store_true",
        help="print the request as a curl command and send nothing; without a question, one of the run's data",
    )
    return parser.parse_args()


def check(chosen: argparse.Namespace) -> None:
    """Refuse options that would be ignored, or would overwrite the file of questions."""
    tasks = sum(map(bool, (chosen.question, chosen.example, chosen.chat, chosen.batch)))
    if tasks > 1 or not (tasks or chosen.curl):
        raise UserError("give one of: a question, --example, --chat, --batch FILE")
    own_question = (chosen.example or (chosen.curl and not tasks)) and not chosen.input  # of the run's data
    if (chosen.input or chosen.stream or chosen.curl) and not chosen.question and not own_question:
        raise UserError("--input, --stream and --curl belong to a single question")
    if chosen.stream and chosen.post:
        raise UserError("--post needs a whole answer, and --stream shows it before it is: leave one of them out")
    if bool(chosen.batch) != bool(chosen.output):
        raise UserError("--batch needs --output FILE, and --output needs --batch FILE")
    if chosen.force and not chosen.batch:
        raise UserError("--force belongs to --batch")
    if chosen.concurrency < 1 or chosen.retries < 0 or not 0 < chosen.timeout < 1e6 or not 0 <= chosen.wait < 1e6:
        raise UserError("--concurrency must be at least 1, --retries and --wait at least 0, and --timeout above 0")
    if chosen.batch and (chosen.output.is_dir() or chosen.output.absolute() == chosen.batch.absolute()):
        raise UserError(f"--output {chosen.output} must be a new file")


def seldom(say: Callable[[str], None], seconds: float = 5) -> Callable[[str], None]:
    """`say`, but silent for some seconds after each line: many requests meet the same trouble at once."""
    last = [-seconds]

    def say_seldom(line: str) -> None:
        if time.monotonic() - last[0] >= seconds:
            last[0] = time.monotonic()
            say(line)

    return say_seldom


def main() -> int | None:
    chosen = options()
    settings = cli.settings_from(chosen)
    url = address.checked_url(chosen.base_url or address.url(settings))
    model = chosen.model or address.model_name(settings)
    check(chosen)
    data = question_file.reading_of(settings)
    for line in [] if chosen.base_url or chosen.curl else lineage.notes(settings):
        note(f"note: {line}")
    talk = Conversation(settings.sampling, chosen.system, chosen.stats)
    own = [] if chosen.base_url else [settings.run_dir / name for name in address.FOLDERS]
    wait = ServerWait(url, chosen.wait, own, note)
    server = Endpoint(url, chosen.retries, chosen.timeout, seldom(note) if chosen.batch else note, wait)

    if chosen.batch:
        answer_batch(server, settings, model, data, chosen)
        return None
    if chosen.chat:
        chat(server, talk, model, chosen.post)
        return None
    if chosen.question:
        messages = talk.ask(template_source.fold(chosen.question, chosen.input, data.template))
    else:
        messages = sample_question.of_run(settings.run_dir) or talk.ask(curl_line.PLAIN_QUESTION)
    if chosen.curl:
        return print(curl_line.line(url, curl_line.body(settings.sampling, model, messages)))
    if chosen.example:
        for message in messages:
            note(f"[{message['role']}] {printable(drop_controls(message['content']))}")
    body = openai_client.request(settings.sampling, model, messages)
    try:
        answer(server, body, chosen.stream, chosen.post, chosen.stats)
    except KeyboardInterrupt:
        note("\n[stopped: the answer is incomplete]")
        return INTERRUPTED
    return None


if __name__ == "__main__":
    cli.run(main)
