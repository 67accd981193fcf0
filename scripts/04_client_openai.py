"""Stage 04: ask the endpoint: one question, a stream, a chat, or a file of questions.

Reads   the endpoint of make serve (or --base-url)
Writes  nothing, or --output FILE with one JSON line per row of --batch FILE
Run     make client ARGS='"Who are you?" --stream'
        python scripts/04_client_openai.py --config configs/demo.yaml "Who are you?"
        python scripts/04_client_openai.py --config configs/demo.yaml "请以沈清漪的口吻回答。" --input "你是谁？"
        python scripts/04_client_openai.py --config configs/demo.yaml --chat
        python scripts/04_client_openai.py --config configs/demo.yaml --batch data/toy/test.jsonl --output answers.jsonl

A server with a key wants LOCKSTEP_API_KEY in the environment.
"""

import argparse
import functools
import json
import os
import shlex
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import cli, endpoint, manifest, paths, records, template
from lockstep.config import Settings
from lockstep.errors import UserError
from lockstep.template import Message

if TYPE_CHECKING:
    from openai import OpenAI


def is_local(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def connect(url: str) -> "OpenAI":
    """A client that speaks to loopback directly, whatever proxy the environment names."""
    from openai import DefaultHttpxClient, OpenAI

    key = (os.environ.get("LOCKSTEP_API_KEY") or "EMPTY").strip()
    if not key.isascii():
        raise UserError("LOCKSTEP_API_KEY must be plain ASCII")
    return OpenAI(base_url=url, api_key=key, http_client=DefaultHttpxClient(trust_env=not is_local(url)))


def request(settings: Settings, model: str, messages: list[Message]) -> dict[str, Any]:
    """The body of a chat request; what OpenAI's API lacks goes into vLLM's extra fields."""
    sampling = settings.sampling.model_dump(exclude_none=True)
    extra = {key: sampling.pop(key) for key in ("top_k", "repetition_penalty")}
    return {"model": model, "messages": messages, **sampling, "extra_body": extra}


def explained(work: Callable[[], Any], client: "OpenAI", model: str) -> Any:
    """Run a request; every way in which it can fail becomes one line."""
    import openai

    try:
        return work()
    except openai.APIConnectionError as error:
        raise UserError(f"no server answers at {client.base_url}: start one with `make serve`") from error
    except openai.AuthenticationError as error:
        raise UserError("the server wants a key: set LOCKSTEP_API_KEY") from error
    except openai.NotFoundError as error:
        raise UserError(f"the server has no model {model!r}; {served_models(client)}") from error
    except openai.APIStatusError as error:
        raise UserError(f"the server refused ({error.status_code}): {error.message}") from error
    except openai.APIError as error:
        raise UserError(f"the server failed: {error.message}") from error


def served_models(client: "OpenAI") -> str:
    """What the server offers, for the message that a name is not among it."""
    import openai

    try:
        names = ", ".join(card.id for card in client.models.list())
    except (openai.OpenAIError, AttributeError):
        return f"{client.base_url} may be no OpenAI endpoint: its address ends in /v1"
    return f"it serves {names}: choose one with --model"


def read_stream(events: Any) -> tuple[str, str | None]:
    """Print an answer while it comes; returns it, and the finish reason if one came."""
    import openai

    pieces, reason = [], None
    try:
        for event in events:
            for choice in event.choices:
                pieces.append(choice.delta.content or "")
                reason = choice.finish_reason or reason
                print(pieces[-1], end="", flush=True)
    except openai.APIError:
        if not any(pieces):
            raise
        reason = None  # what was shown is a part of an answer
    return "".join(pieces), reason


def ask(client: "OpenAI", body: dict[str, Any], stream: bool, show: bool = True) -> tuple[str, str]:
    """(answer, finish reason). Raises UserError if the answer ended without a finish reason."""
    if stream:
        answer, reason = read_stream(client.chat.completions.create(**body, stream=True))
    else:
        response = client.chat.completions.create(**body)
        if isinstance(response, str):  # the SDK hands on what is no JSON
            raise UserError(f"{client.base_url} is no OpenAI endpoint: its address ends in /v1")
        choice = response.choices[0]
        answer, reason = choice.message.content or "", choice.finish_reason
        if show:
            print(answer, end="")
    if show:
        print()
    if reason is None:
        raise UserError("the answer broke off: the server or the connection failed before its end")
    if reason == "length" and show:
        print(f"[cut off at {body['max_tokens']} tokens: raise --sampling.max_tokens]", file=sys.stderr)
    return answer, reason


def chat(client: "OpenAI", settings: Settings, model: str, history: list[Message]) -> None:
    """A conversation in the terminal; Ctrl-D ends it. A failed turn leaves the history as it was."""
    import openai

    print(f"chatting with {model}; Ctrl-D ends it")
    while True:
        try:
            question = input("> ")
        except EOFError:
            return print()
        if not question.strip():
            continue
        turn: list[Message] = [*history, {"role": "user", "content": question}]
        try:
            body = request(settings, model, turn)
            answer, _ = explained(functools.partial(ask, client, body, True), client, model)
        except (UserError, openai.OpenAIError) as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        history = [*turn, {"role": "assistant", "content": answer}]


def batch_rows(file: Path, style: str, system: list[Message]) -> Iterator[tuple[list[Message], str | None]]:
    """(messages, reference answer or None) of each line: Alpaca fields, or `messages`."""
    for number, row in records.json_lines(file):
        try:
            if "messages" in row:
                yield row["messages"], None
            else:
                content = template.fold(row["instruction"], row.get("input") or "", style)
                yield [*system, {"role": "user", "content": content}], row.get("output")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}:{number} has neither `instruction` nor `messages`") from error


def batch(
    client: "OpenAI", settings: Settings, model: str, questions: list[Any], output: Path, concurrency: int
) -> None:
    """Answer all rows, in order, each with its answer or its error; the file appears when whole."""
    import openai
    from tqdm import tqdm

    def one(row: tuple[list[Message], str | None]) -> dict[str, Any]:
        messages, reference = row
        started = time.monotonic()
        record: dict[str, Any] = {"messages": messages, "reference": reference}
        try:
            body = request(settings, model, messages)
            record["answer"], record["finish_reason"] = ask(client, body, stream=False, show=False)
        except (openai.APIConnectionError, openai.NotFoundError, openai.AuthenticationError):
            raise  # every other row would fail in the same way
        except (openai.OpenAIError, UserError) as error:
            record["error"] = str(error)
        return record | {"seconds": round(time.monotonic() - started, 3)}

    temporary = output.with_name(f".{output.name}.partial")
    failed = 0
    with ThreadPoolExecutor(concurrency) as pool, temporary.open("w", encoding="utf-8") as stream:
        try:
            for record in tqdm(pool.map(one, questions), total=len(questions), unit=" rows", disable=None):
                failed += "error" in record
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    temporary.replace(output)
    print(f"{output}: {len(questions) - failed} answers, {failed} errors")
    if failed:
        raise UserError(f"{failed} of {len(questions)} rows have no answer: see `error` in {output}")


def as_curl(url: str, body: dict[str, Any]) -> str:
    """The same request for a shell."""
    flat = {k: v for k, v in body.items() if k != "extra_body"} | body["extra_body"]
    words = ["curl", "--silent", "--show-error", f"{url}/chat/completions", "-H", "Content-Type: application/json"]
    words += ["--noproxy", "*"] if is_local(url) else []
    words += ["-d", json.dumps(flat, ensure_ascii=False)]
    # bash hands the key over as a file, so that it stands in no process list
    key = """ -H @<(printf 'Authorization: Bearer %s' "$LOCKSTEP_API_KEY")"""
    return shlex.join(words) + (key if os.environ.get("LOCKSTEP_API_KEY") else "")


def style_of(settings: Settings) -> str:
    """The template that folds instruction and input: the run's, where its data is here."""
    data = settings.run_dir / "data"
    if not (data / manifest.FILE).exists():
        return settings.data.template
    return str(manifest.read(data).config["data"]["template"])


def options() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "", "serve", "sampling")
    parser.add_argument("question", nargs="?", help="what to ask")
    parser.add_argument("--input", default="", help="Alpaca's input field, folded into the question as in training")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--stream", action="store_true", help="show the answer while it is made")
    parser.add_argument("--chat", action="store_true", help="talk, with history")
    parser.add_argument("--batch", type=Path, metavar="FILE", help="JSONL: Alpaca fields, or messages")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where --batch writes its answers")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time in --batch [16]")
    parser.add_argument("--model", help="the served model's name [the run's name]")
    parser.add_argument("--base-url", help="the endpoint, ending in /v1 [from serve.host and serve.port]")
    parser.add_argument("--curl", action="store_true", help="print the request as a curl command and send nothing")
    return parser.parse_args()


def check(chosen: argparse.Namespace) -> None:
    """Refuse options that would be ignored, or that would overwrite what is asked from."""
    if sum(map(bool, (chosen.question, chosen.chat, chosen.batch))) != 1:
        raise UserError("give one of: a question, --chat, --batch FILE")
    if (chosen.input or chosen.stream or chosen.curl) and not chosen.question:
        raise UserError("--input, --stream and --curl belong to a single question")
    if bool(chosen.batch) != bool(chosen.output):
        raise UserError("--batch needs --output FILE, and --output needs --batch FILE")
    if chosen.concurrency < 1:
        raise UserError("--concurrency must be at least 1")
    if chosen.batch and (chosen.output.is_dir() or chosen.output.absolute() == chosen.batch.absolute()):
        raise UserError(f"--output {chosen.output} must be a new file")


def main() -> None:
    chosen = options()
    settings = cli.settings_from(chosen)
    url = chosen.base_url or endpoint.url(settings)
    model = chosen.model or endpoint.model_name(settings)
    system: list[Message] = [{"role": "system", "content": chosen.system}] if chosen.system else []
    check(chosen)
    style = style_of(settings)

    if chosen.batch:
        questions = list(batch_rows(chosen.batch, style, system))
        if not questions:
            raise UserError(f"{chosen.batch} holds no rows")
        paths.make_parent(chosen.output)
        client = connect(url)
        work = functools.partial(batch, client, settings, model, questions, chosen.output, chosen.concurrency)
        explained(work, client, model)
        return None
    if chosen.chat:
        return chat(connect(url), settings, model, system)
    question: Message = {"role": "user", "content": template.fold(chosen.question, chosen.input, style)}
    body = request(settings, model, [*system, question])
    if chosen.curl:
        return print(as_curl(url, body))
    client = connect(url)
    explained(lambda: ask(client, body, chosen.stream), client, model)


if __name__ == "__main__":
    cli.run(main)
