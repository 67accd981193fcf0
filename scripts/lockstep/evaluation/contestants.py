"""Models that answer the same questions: who they are, where they answer, and their answers on disk.

Answers are kept in `outputs/<run>/answers/` under a name that holds the hash of all that they depend
on: model, question, sampling. What is there is not asked again, and a stopped evaluation goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.artifacts import filenames
from lockstep.client import openai_client
from lockstep.client.batch_file import AnswerRecord, BatchFile, key_of
from lockstep.client.openai_client import Endpoint
from lockstep.client.request_errors import NoAnswer
from lockstep.data.collator import IGNORE
from lockstep.data.conversation_row import unpacked
from lockstep.errors import UserError
from lockstep.evaluation.train_test_overlap import Pair
from lockstep.prompts.template import Message
from lockstep.serving import temporary_server
from lockstep.settings.schema import Evaluate, Sampling
from lockstep.text import json_text

Progress = Callable[
    [str, int, int, Iterator[AnswerRecord]], Iterator[AnswerRecord]
]  # (what, all rows, rows there, rows to come)


@dataclass(frozen=True)
class Case:
    """One row of the test split.

    Attributes:
        name: file and line.
        messages: what is asked; tools: what it may call.
        wanted: the answer that the row holds.
        input_ids, places: the whole row, and where in it tokens are supervised.
        start: where the wanted answer begins.
    """

    name: str
    messages: list[Message]
    tools: list[Any] | None
    wanted: str
    input_ids: list[int]
    places: list[int]
    start: int

    @property
    def pair(self) -> Pair:
        """What is asked, and the wanted answer."""
        return _text(self.messages), self.wanted


@dataclass(frozen=True)
class Contestant:
    """A model that answers.

    Args:
        name: base, tuned, or a run's name.
        model: the name that requests send.
        identity: hash of its weights and template, or its address where it is someone else's server.
        mode: of serve.mode, for a server of our own.
        words: the settings of that server, as words of a command line.
        url: of a server that runs already.
    """

    name: str
    model: str
    identity: str
    mode: str
    words: tuple[str, ...] = ()
    url: str | None = None

    @contextmanager
    def endpoint(self, say: Callable[[str], None]) -> Iterator[Endpoint]:
        """Its server; one of our own lives as long as the block."""
        with ExitStack() as stack:
            url = self.url or stack.enter_context(temporary_server.served(self.words, self.mode, say))
            yield Endpoint(url, notice=say)


@dataclass(frozen=True)
class Task:
    """Something that is asked of a contestant, row by row.

    Args:
        kind: answers, likelihood … part of the file's name.
        parts: all that the result depends on beside the model, as JSON values.
        rows: how many.
        work: endpoint, model's name, row's number → the row's record.
    """

    kind: str
    parts: Any
    rows: int
    work: Callable[[Endpoint, str, int], AnswerRecord]


def cases(data: Path, most: int | None) -> list[Case]:
    """The test split's rows.

    Raises:
        UserError: it is empty.
    """
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    split = load_from_disk(str(data / "test"))
    if not len(split):
        raise UserError("the test split has no rows: set --data.test_file or --data.test_share and make the data again")
    tokenizer = None
    found = []
    for row in split.select(range(min(len(split), most or len(split)))):
        last = row["messages"][-1]
        places = [place for place, label in enumerate(row["labels"]) if label != IGNORE and place]
        start = len(row["input_ids"]) - row["answer"]
        if start - 1 in places:  # the prompt was trained, too, and is no answer
            places = [place for place in places if place >= start]
        wanted = last["content"]
        if last.get("extra"):  # calls of tools: what the model must say is what its template writes
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(
                data.parent / filenames.ADAPTER, local_files_only=True
            )
            wanted = tokenizer.decode(row["input_ids"][start : places[-1] + 1], skip_special_tokens=True)
        messages, tools = unpacked(row)
        found.append(Case(row["row"], messages[:-1], tools, wanted, row["input_ids"], places, start))
    return found


def question(text: str) -> Case:
    """A question by itself."""
    return Case("", [{"role": "user", "content": text}], None, "", [], [], 0)


def encoded(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of plain texts, as the tokenizer of a folder begins and ends them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [list(tokenizer(text)["input_ids"]) for text in texts]


def pairs(split: Path) -> Iterator[Pair]:
    """(what is asked, the wanted answer) of each row of a split on disk."""
    from datasets import load_from_disk

    for row in load_from_disk(str(split)):
        *before, last = row["messages"]
        yield _text(before), last["content"] or ""


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(one["content"] or "" for one in messages)


def answers(asked: Sequence[Case], sampling: Sampling, evaluate: Evaluate, longest: int, kind: str = "answers") -> Task:
    """Have each row answered.

    Args:
        longest: tokens of prompt and answer that the server takes.
    """

    def body(model: str, case: Case) -> dict[str, Any]:
        made = openai_client.request(sampling, model, case.messages)
        made |= {"max_tokens": max(1, min(evaluate.max_tokens, longest - case.start))}
        return made | ({"tools": case.tools, "tool_choice": "none"} if case.tools else {})

    def work(server: Endpoint, model: str, number: int) -> AnswerRecord:
        return server.record(body(model, asked[number]))

    return Task(kind, [body("", case) for case in asked], len(asked), work)


def likelihoods(ids: Sequence[Sequence[int]], places: Sequence[Sequence[int]], kind: str) -> Task:
    """Have the log-probability of each row's tokens at some places summed: `nats` (of −log p) and `tokens`."""

    def work(server: Endpoint, model: str, number: int) -> AnswerRecord:
        try:
            found = server.prompt_log_probs(model, ids[number])
        except NoAnswer as error:
            if error.scope != "request":
                raise
            return {"nats": 0.0, "tokens": 0, "refused": str(error)}
        chosen = [found[place - 1] for place in places[number]]
        return {"nats": -sum(chosen), "tokens": len(chosen)}

    return Task(kind, [list(map(list, ids)), list(map(list, places))], len(ids), work)


def collect(
    contestant: Contestant, tasks: Sequence[Task], folder: Path, concurrency: int, say: Callable[[str], None],
    progress: Progress,
) -> dict[str, list[AnswerRecord]]:  # fmt: skip
    """Everything that is asked of a contestant, by kind, from disk where it is there already.

    Raises:
        UserError: its server does not start, or fails beyond patience; what it answered is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    with ExitStack() as stack:
        for task in tasks:
            key = key_of([contestant.identity, task.kind, task.parts])
            name = f"{contestant.name}-{task.kind}-{key[:12]}.jsonl"
            files[task.kind] = stack.enter_context(BatchFile(folder / name, key, task.rows))
        waiting = [task for task in tasks if not files[task.kind].finished]
        if waiting:
            server = stack.enter_context(contestant.endpoint(say))
        for task in waiting:
            file = files[task.kind]

            def work(number: int, task: Task = task) -> AnswerRecord:
                return task.work(server, contestant.model, number)

            for _ in progress(
                f"{contestant.name}: {task.kind}", task.rows, len(file.done), file.fill(work, concurrency)
            ):
                pass
            file.publish()
    return {kind: [row for _, row in json_text.json_lines(file.output)] for kind, file in files.items()}
