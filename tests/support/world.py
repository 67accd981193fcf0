"""A home in which every stage ran once, undisturbed, and may be run again with something going wrong."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import hub, tiny
from support.misbehaving import Handler, Server
from support.nursery import Ended, Nursery, verifies

# Keys of JSON that tell times, and in a manifest the files that hold some: `broken` compares those with their hashes.
TIMED = {"created", "argv", "threads", "seconds", "first_token_seconds", "metrics", "latency", "tokens_per_second", "train_seconds",
         "peak_memory_bytes", "metrics.json", "predictions.jsonl", "report.html"}  # fmt: skip
OF_A_REPORT = re.compile(r"<tr>(?:(?!</tr>).)*under load.*?</tr>|Lockstep, [\d :-]+", re.DOTALL)

TRAIN = (
    "--train.per_device_train_batch_size", "2", "--train.gradient_accumulation_steps", "2", "--train.num_train_epochs", "2",
    "--train.save_steps", "6", "--train.eval_steps", "9", "--train.sample_rows", "1", "--train.learning_rate", "1e-2", "--lora.r", "4",
    "--train.sample_tokens", "4", "--lora.lora_dropout", "0.1", "--train.logging_steps", "4",
)  # fmt: skip
STAGES: dict[str, tuple[str, ...]] = {
    "local": ("00_download_model.py", "--model.source", "local"),
    "hub": ("00_download_model.py", "--model.source", "hub", "--model.id", "org/tiny", "--model.name", "fetched"),
    "data": ("01_data_collator.py",),
    "train": ("02_train_qlora.py", *TRAIN),
    "merge": ("03_merge_lora.py",),
    "base": ("03_merge_lora.py", "--base"),
    "external": ("03_merge_lora.py", "--run", "taken", "--adapter.path", "{home}/peft"),
    "batch": ("04_client_openai.py", "--batch", "{home}/questions.jsonl", "--output", "{home}/outputs/answers.jsonl",
              "--base-url", "{server}"),
    "evaluate": ("05_evaluate.py", "--evaluate.base_url", "{server}", "--evaluate.tuned_url", "{server}"),
    "report": ("05_evaluate.py", "--report"),
}  # fmt: skip
BEFORE = {"external": ("01_data_collator.py", "--run", "taken")}  # what a stage needs that no other one makes


class Likely(Handler):
    """Gives every token the same log-probability."""

    def do_POST(self) -> None:
        if self.path == "/v1/chat/completions":
            return super().do_POST()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        places = [None] + [{str(token): {"logprob": -1.0}} for token in body["prompt"][1:]]
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": places}
        self.send({"id": "1", "object": "text_completion", "created": 1, "model": "r", "choices": [choice]})


@dataclass
class Clean:
    """A stage that ran undisturbed."""

    before: Path  # models/ and outputs/ as it found them
    after: dict[str, str]
    ended: Ended


@dataclass
class World:
    """A home in which all stages ran once."""

    nursery: Nursery
    server: str
    clean: dict[str, Clean]

    def words(self, name: str) -> list[str]:
        home = self.nursery.home
        shared = ("--run", "r", "--model.source", "local", "--model.path", "{home}/tiny", "--model.name", "tiny",
                  "--data.train_file", "{home}/rows.jsonl", "--data.max_length", "200")  # fmt: skip
        script, *own = STAGES[name]
        given = shared[:2] if name == "batch" else shared
        return [word.format(home=home, server=self.server) for word in (script, *given, *own)]

    def sites(self, name: str) -> dict[str, int]:
        """The places of a stage that change the disk, and how often; without those that an earlier stage has, too."""
        earlier = {site for other in list(STAGES)[: list(STAGES).index(name)] for site in self.clean[other].ended.sites}
        return {site: count for site, count in self.clean[name].ended.sites.items() if site not in earlier}

    def run(self, name: str, more: tuple[str, ...] = (), **task: Any) -> Ended:
        """Run a stage; `task` says what goes wrong, as in `nursery.Task`."""
        return self.nursery.run(*self.words(name), *more, **task)


def steady(value: Any) -> Any:
    """JSON without what is timed."""
    if isinstance(value, dict):
        return {key: steady(one) for key, one in value.items() if key not in TIMED}
    return [steady(one) for one in value] if isinstance(value, list) else value


def summary(file: Path) -> str:
    """What must be equal in a file after a kill: its bytes, or its text without what is timed."""
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    if file.name == "report.html":
        text = OF_A_REPORT.sub("", text)
    elif file.name in {"manifest.json", "metrics.json"} or file.suffix == ".done":
        # of an evaluation and of answers, which hold latencies
        follows = (
            {"digest"} if file.parent.name == "eval" else {"sha256", "replaces"} if file.suffix == ".done" else set()
        )
        text = json.dumps({key: value for key, value in steady(json.loads(text)).items() if key not in follows})
    elif file.name in {"metrics.jsonl", "predictions.jsonl", "answers.jsonl"} or (
        file.parent.name == "answers" and file.suffix == ".jsonl"
    ):
        text = json.dumps([steady(json.loads(line)) for line in text.splitlines()])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def contents(home: Path) -> dict[str, str]:
    """All that models/ and outputs/ hold, apart from locks, the curves of each start, and remembered hashes."""
    files = [file for name in ("models", "outputs") for file in sorted((home / name).rglob("*")) if not file.is_dir()]
    return {
        file.relative_to(home).as_posix(): summary(file)
        for file in files
        if not file.name.endswith(".lock") and file.parent.name != "runs" and file.name != ".hashes.json"
    }


def broken(home: Path) -> list[str]:
    """Folders that do not verify, and notes of finished answers that tell another hash than these have."""
    folders = [file.parent for name in ("models", "outputs") for file in (home / name).rglob("manifest.json")]
    return [str(folder) for folder in folders if not verifies(folder)] + [
        str(note) for note in (home / "outputs").rglob(".*.done") if not of_its_answers(note)
    ]


def of_its_answers(note: Path) -> bool:
    answers = note.with_name(note.stem[1:])
    if answers.with_name(f".{answers.name}.partial").exists():  # not finished: the same command goes on
        return True
    return bool(json.loads(note.read_bytes())["sha256"] == hashlib.sha256(answers.read_bytes()).hexdigest())


def prepare(home: Path) -> None:
    tiny.model(home / "tiny")
    tiny.rows(home / "rows.jsonl", 40)
    tiny.peft_adapter(home / "peft", home / "tiny")
    (home / "questions.jsonl").write_text("".join(f'{{"instruction": "question {n}"}}\n' for n in range(12)))


@contextmanager
def built(home: Path) -> Iterator[World]:
    """All stages run once in an empty folder."""
    prepare(home)
    stand_in = Server(("127.0.0.1", 0), Likely)
    threading.Thread(target=stand_in.serve_forever, args=(0.02,), daemon=True).start()
    with hub.serve(home / "tiny") as repository, Nursery(home, HF_ENDPOINT=repository.url) as nursery:
        made = World(nursery, stand_in.url, {})
        for name in STAGES:
            if name in BEFORE:
                nursery.finish(*made.words("data"), *BEFORE[name][1:])
            before = nursery.keep(home / "snapshots" / name)
            ended = made.run(name, count_sites=True)
            assert ended.code == 0, ended.printed
            made.clean[name] = Clean(before, contents(home), ended)
        yield made
    stand_in.shutdown()


def one_line(ended: Ended) -> str:
    """The line that says why a stage ended; fails where it said more, or something else."""
    lines = [line for line in ended.printed.splitlines() if "error: " in line]
    assert "Traceback" not in ended.printed and len(lines) == 1, ended.printed[-3000:]
    return lines[0]


def again(world: World, name: str, more: tuple[str, ...] = ()) -> list[str]:
    """What is wrong once the killed stage has run again."""
    ended = world.run(name, more, watch_reads=True)
    if ended.code != 0:
        return [f"ends with {ended.code}: {ended.printed[-2000:]}"]
    found, wanted = contents(world.nursery.home), world.clean[name].after
    wrong = [f"read before it verifies: {read}" for read in ended.reads]
    wrong += [f"is not whole: {one}" for one in broken(world.nursery.home)]
    return wrong + [
        f"{file} {'is left over' if file not in wanted else 'is missing' if file not in found else 'differs'}"
        for file in sorted(found.keys() | wanted.keys())
        if found.get(file) != wanted.get(file)
    ]
