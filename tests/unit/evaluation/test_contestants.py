"""What contestants are asked, and that nothing is asked twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from support import tiny
from support.misbehaving import Server

from lockstep.data import arrow_writer
from lockstep.errors import UserError
from lockstep.evaluation import contestants
from lockstep.evaluation.contestants import Contestant
from lockstep.settings.schema import Evaluate, Sampling

IGNORE = -100
CALL = {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Basel"}}}]}


def row(answer: str | None, labels: list[int], answer_tokens: int, **more: Any) -> dict[str, Any]:
    """A line of a split on disk, whose tokens are 100, 101 …"""
    messages = [
        {"role": "user", "content": "q", "extra": ""},
        {"role": "assistant", "content": answer, "extra": more.pop("extra", "")},
    ]
    ids = list(range(100, 100 + len(labels)))
    return {
        "row": "t:1",
        "messages": messages,
        "tools": "",
        "input_ids": ids,
        "labels": labels,
        "answer": answer_tokens,
    } | more


def split(folder: Path, *rows: dict[str, Any]) -> Path:
    Dataset.from_list(list(rows)).save_to_disk(str(folder / "test"))
    return folder


def test_places_are_the_supervised_tokens_of_the_answer(tmp_path: Path) -> None:
    masked = row("a", [IGNORE] * 3 + [7, 7], 2)
    whole = row("a", [7] * 5, 2)  # the prompt was trained on as well
    first, second = contestants.cases(split(tmp_path, masked, whole), None)
    assert first.places == second.places == [3, 4] and first.start == second.start == 3
    assert first.pair == ("q", "a") and first.messages == [{"role": "user", "content": "q"}]
    assert len(contestants.cases(tmp_path, 1)) == 1


def test_the_reference_of_a_tool_call_is_what_the_template_writes(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(tmp_path / "adapter")
    written = tokenizer('{"name": "weather"}')["input_ids"]
    ids = [5, *written, tokenizer.eos_token_id]
    call = row(
        None, [IGNORE, *ids[1:]], len(ids) - 1, extra=json.dumps(CALL), input_ids=ids, tools='[{"name": "weather"}]'
    )
    (case,) = contestants.cases(split(tmp_path / "data", call), None)
    assert case.reference == '{"name": "weather"}' and case.tools == [{"name": "weather"}]


def test_the_reference_of_an_answer_with_a_thought_is_the_answer_alone(tmp_path: Path) -> None:
    split(tmp_path, row("<think>\nx\n</think>\n\ny", [IGNORE] * 3 + [7, 7], 2), row("y", [IGNORE] * 3 + [7, 7], 2))
    (tmp_path / "contract.json").write_text(json.dumps({"thought_marks": ["<think>", "</think>"]}))
    assert [case.reference for case in contestants.cases(tmp_path, None)] == ["y", "y"]


def test_an_empty_test_split_names_the_settings(tmp_path: Path) -> None:
    arrow_writer.Split(tmp_path / "test").close()
    with pytest.raises(UserError, match=r"--data\.test_share"):
        contestants.cases(tmp_path, None)


@pytest.fixture
def asked(server: Server) -> Iterator[Server]:
    server.answer = lambda model, question: f"{model}: {question}"
    yield server


def collect(server: Server, folder: Path, identity: str = "weights", questions: tuple[str, ...] = ("a", "b")) -> Any:
    contestant = Contestant("tuned", "r", identity, "merged", url=server.url)
    task = contestants.answers([contestants.question(text) for text in questions], Sampling(), Evaluate(), 512)
    return contestants.collect(contestant, [task], folder, 2, lambda _: None, lambda what, rows, done, records: records)


def test_what_is_on_disk_is_not_asked_again(asked: Server, tmp_path: Path) -> None:
    answers = collect(asked, tmp_path)["answers"]
    assert [record["answer"] for record in answers] == ["r: a", "r: b"] and len(asked.seen) == 2
    assert collect(asked, tmp_path)["answers"] == answers and len(asked.seen) == 2


@pytest.mark.parametrize("change", [{"identity": "other weights"}, {"questions": ("a", "c")}])
def test_another_model_or_question_is_asked_anew(asked: Server, tmp_path: Path, change: dict[str, Any]) -> None:
    collect(asked, tmp_path)
    collect(asked, tmp_path, **change)
    assert len(asked.seen) == 4


def test_an_answer_gets_the_room_that_the_prompt_leaves(asked: Server, tmp_path: Path) -> None:
    (case,) = contestants.cases(split(tmp_path, row("a", [IGNORE] * 3 + [7, 7], 2)), None)
    for longest, expected in ((512, 64), (40, 37), (2, 1)):
        task = contestants.answers([case], Sampling(), Evaluate(max_tokens=64), longest)
        assert task.parts[0]["max_tokens"] == expected


class LogProbs:
    """Stands in for an endpoint whose server gives log-probabilities, or refuses."""

    def __init__(self, scope: str | None = None) -> None:
        self.scope: Any = scope

    def prompt_log_probs(self, model: str, ids: list[int]) -> list[float]:
        from lockstep.client.request_errors import NoAnswer

        if self.scope:
            raise NoAnswer("no", self.scope, "refused")
        return [-float(place) for place in range(1, len(ids))]  # of the tokens at 1, 2 …


def test_likelihoods_sum_the_tokens_at_their_places() -> None:
    task = contestants.likelihoods([[9, 9, 9, 9]], [[1, 3]], "likelihood")
    endpoint: Any = LogProbs()
    assert task.work(endpoint, "r", 0) == {"nats": 4.0, "tokens": 2}


def test_a_row_that_the_server_refuses_is_left_out_and_a_dead_server_is_not() -> None:
    from lockstep.client.request_errors import NoAnswer

    task = contestants.likelihoods([[9, 9]], [[1]], "likelihood")
    refusing: Any = LogProbs("request")
    assert task.work(refusing, "r", 0) == {"nats": 0.0, "tokens": 0, "refused": "no"}
    dead: Any = LogProbs("moment")
    with pytest.raises(NoAnswer):
        task.work(dead, "r", 0)
