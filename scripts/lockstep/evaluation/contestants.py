"""The models that are compared: who they are, which server answers for them, what they are asked, and their answers.

Answers are kept in `outputs/<run>/answers/` under a name that contains the hash of everything they depend
on: model, questions, sampling. What is on disk is not asked again, so a stopped evaluation goes on where it was.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic, filenames
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

# (description, rows in all, rows on disk, records to come) → the same records, shown as they come
Progress = Callable[[str, int, int, Iterator[AnswerRecord]], Iterator[AnswerRecord]]


@dataclass(frozen=True)
class Case:
    """One row of the test split.

    Attributes:
        name: file and line.
        messages: what is asked.
        tools: what the model may call.
        reference: the answer that the row holds.
        input_ids: tokens of the whole row, prompt and reference.
        places: where in them the supervised tokens are.
        start: where in them the reference begins.
    """

    name: str
    messages: list[Message]
    tools: list[Any] | None
    reference: str
    input_ids: list[int]
    places: list[int]
    start: int

    @property
    def pair(self) -> Pair:
        """What is asked, and the reference."""
        return _text(self.messages), self.reference


@dataclass(frozen=True)
class Contestant:
    """A model that answers.

    Args:
        name: base, tuned, or a run's name.
        model: the name that requests send.
        identity: what tells it from other models: hashes of weights and template, and the settings of its server;
            before them its address where somebody else's server answers.
        mode: the serve.mode of a server that the evaluation starts.
        words: that server's settings, as words of a command line.
        url: of a server that is running already.
    """

    name: str
    model: str
    identity: str
    mode: str
    words: tuple[str, ...] = ()
    url: str | None = None

    @contextmanager
    def endpoint(self, say: Callable[[str], None]) -> Iterator[Endpoint]:
        """Its server; one that is started here lives as long as the block."""
        with ExitStack() as stack:
            url = self.url or stack.enter_context(temporary_server.served(self.words, self.mode, say)).url
            yield Endpoint(url, notice=say)


@dataclass(frozen=True)
class Task:
    """Something that is asked of a contestant, row by row.

    Args:
        kind: answers, likelihood …; part of the file's name.
        parts: everything the result depends on besides the model, as JSON values.
        rows: how many rows there are.
        work: (endpoint, the model's name, the row's number) → the row's record.
    """

    kind: str
    parts: Any
    rows: int
    work: Callable[[Endpoint, str, int], AnswerRecord]


def cases(data: Path, most: int | None) -> list[Case]:
    """The rows of the test split, at most so many.

    Raises:
        UserError: the split is empty.
    """
    from datasets import load_from_disk

    split = load_from_disk(str(data / filenames.TEST))
    if not len(split):
        raise UserError("the test split has no rows: set --data.test_file or --data.test_share and make the data again")
    rows = split.select(range(min(len(split), most or len(split))))
    tokenizer = None
    agreed = atomic.read_json(data / filenames.CONTRACT) if (data / filenames.CONTRACT).exists() else {}
    marks = agreed.get("thought_marks")
    asked = []
    for row in rows:
        *_, answer = row["messages"]
        places = [place for place, label in enumerate(row["labels"]) if label != IGNORE and place]
        start = len(row["input_ids"]) - row["answer"]
        if start - 1 in places:  # the prompt is supervised, too, and is not part of the answer
            places = [place for place in places if place >= start]
        reference = answer["content"]
        if answer.get("extra"):  # tool calls: the model must write them as its template does
            tokenizer = tokenizer or _tokenizer(data.parent / filenames.ADAPTER)
            reference = tokenizer.decode(row["input_ids"][start : places[-1] + 1], skip_special_tokens=True)
        if marks:  # servers give thoughts apart from answers
            reference = reference.rpartition(marks[1])[2].lstrip("\n")
        messages, tools = unpacked(row)
        asked.append(Case(row["row"], messages[:-1], tools, reference, row["input_ids"], places, start))
    return asked


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def question(text: str) -> Case:
    """A single question, without a reference."""
    return Case("", [{"role": "user", "content": text}], None, "", [], [], 0)


def encoded(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of plain texts, with the special tokens that a folder's tokenizer puts around any text."""
    tokenizer = _tokenizer(folder)
    return [list(tokenizer(text)["input_ids"]) for text in texts]


def pairs(split: Path) -> Iterator[Pair]:
    """(what is asked, the reference) of each row of a split on disk."""
    from datasets import load_from_disk

    for row in load_from_disk(str(split)):
        *before, last = row["messages"]
        yield _text(before), last["content"] or ""


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] or "" for message in messages)


def answers(
    questions: Sequence[Case], sampling: Sampling, evaluate: Evaluate, longest: int, kind: str = "answers"
) -> Task:
    """Have each question answered.

    Args:
        longest: how many tokens of prompt and answer together the server takes.
    """

    def body(model: str, case: Case) -> dict[str, Any]:
        request = openai_client.request(sampling, model, case.messages)
        request["max_tokens"] = max(1, min(evaluate.max_tokens, longest - case.start))
        if case.tools:
            request |= {"tools": case.tools, "tool_choice": "none"}
        return request

    def work(server: Endpoint, model: str, number: int) -> AnswerRecord:
        return server.record(body(model, questions[number]))

    return Task(kind, [body("", case) for case in questions], len(questions), work)


def likelihoods(ids: Sequence[Sequence[int]], places: Sequence[Sequence[int]], kind: str) -> Task:
    """Have −log p summed over tokens of each row: `nats`, and over how many `tokens`.

    Args:
        ids: token ids of each row.
        places: of each row, the positions whose tokens count; none of them is 0, which nothing predicts.
    """

    def work(server: Endpoint, model: str, number: int) -> AnswerRecord:
        try:
            log_probs = server.prompt_log_probs(model, ids[number])  # of the second token on
        except NoAnswer as error:
            if error.scope != "request":  # only a row that the server refuses is left out
                raise
            return {"nats": 0.0, "tokens": 0, "refused": str(error)}
        chosen = [log_probs[place - 1] for place in places[number]]
        return {"nats": -sum(chosen), "tokens": len(chosen)}

    return Task(kind, [list(map(list, ids)), list(map(list, places))], len(ids), work)


def collect(
    contestant: Contestant,
    tasks: Sequence[Task],
    folder: Path,
    concurrency: int,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, list[AnswerRecord]]:
    """Everything that is asked of a contestant, by kind of task; from disk where it is there already.

    Args:
        folder: where the answers are kept.
        concurrency: how many rows are asked at a time.
        say: where notices go.
        progress: shows the rows as they come.

    Raises:
        UserError: its server does not start, or fails for longer than the client waits; what it answered is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    with ExitStack() as stack:
        for task in tasks:
            key = key_of([contestant.identity, task.kind, task.parts])
            name = f"{contestant.name}-{task.kind}-{key[:12]}.jsonl"
            files[task.kind] = stack.enter_context(BatchFile(folder / name, key, task.rows))
        waiting = [task for task in tasks if not files[task.kind].finished]
        if waiting:  # no server is started when everything is on disk
            server = stack.enter_context(contestant.endpoint(say))
        for task in waiting:
            file = files[task.kind]

            def work(number: int, task: Task = task) -> AnswerRecord:
                return task.work(server, contestant.model, number)

            records = file.fill(work, concurrency)
            for _ in progress(f"{contestant.name}: {task.kind}", task.rows, len(file.done), records):
                pass
            file.publish()
    return {kind: [row for _, row in json_text.json_lines(file.output)] for kind, file in files.items()}
