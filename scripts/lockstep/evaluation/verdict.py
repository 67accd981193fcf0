"""From answers to figures: everything that eval/metrics.json and predictions.jsonl hold."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lockstep.client.batch_file import AnswerRecord
from lockstep.evaluation import answer_kinds, bootstrap, contestants, forgetting, scores, train_test_overlap
from lockstep.evaluation.contestants import Case
from lockstep.evaluation.forgetting import Panel
from lockstep.evaluation.measures import Measure
from lockstep.settings.schema import Sampling

Answers = dict[str, list[AnswerRecord]]  # of one contestant: kind of task → a record for each row
# measures that say what a way of sampling does
SAMPLED = ("repetition_rate", "loop_rate", "distinct_2", "stop_rate", "output_characters", "exact_match", "rouge_l")


def metrics(
    cases: Sequence[Case], answers: Mapping[str, Answers], panel: Panel, recorded: Sequence[Any], train: Path, seed: int
) -> dict[str, Any]:
    """eval/metrics.json, except for what says how the questions were asked.

    Args:
        cases: the test rows.
        answers: by contestant, `base` and `tuned` among them.
        recorded: rows of reference.json, in the order in which `tuned` was asked for its `reference`.
        train: the split that test rows must not overlap with.
        seed: of the resampling.
    """
    comparable = _in_all(answers, "likelihood")
    figures = {name: _of_contestant(cases, own, comparable) for name, own in answers.items()}
    base, tuned = answers["base"], answers["tuned"]
    # a question counts only where both models answered it
    answered = [
        "error" not in base_row and "error" not in tuned_row
        for base_row, tuned_row in zip(base["general"], tuned["general"], strict=True)
    ]
    paragraphs = _in_all(answers, "prose")
    base_memory, tuned_memory = (_of_panel(panel, own, answered, paragraphs) for own in (base, tuned))
    counted = {"general_questions": sum(answered), "prose_perplexity": sum(paragraphs)}
    texts = [[row.get("answer", "") for row in own["answers"]] for own in (base, tuned)]
    result = bootstrap.compare(figures["base"], figures["tuned"], seed) | {
        "rows": len(cases),
        "errors": {name: sum("error" in row for row in own["answers"]) for name, own in answers.items()},
        "unanswered": {name: _unanswered(own) for name, own in answers.items()},
        "answers": answer_kinds.summary([case.reference for case in cases], texts[0], texts[1], seed),
        "forgetting": bootstrap.compare(base_memory, tuned_memory, seed) | {"rows": counted},
        "overlap": train_test_overlap.find(contestants.pairs(train), [case.pair for case in cases]).summary(),
        "serving": _served_against_trained(recorded, tuned["reference"]),
    }
    if others := [name for name in answers if name not in ("base", "tuned")]:
        result["runs"] = {name: bootstrap.compare(figures["tuned"], figures[name], seed)["tuned"] for name in others}
    return result


def of_sampling(cases: Sequence[Case], sampling: Sampling, rows: Sequence[AnswerRecord]) -> dict[str, Any]:
    """What a way of sampling does to repetition, length and correctness, over the first rows that have an answer."""
    answered = [(case, row) for case, row in zip(cases, rows, strict=False) if "error" not in row]
    figures = _of_texts([case for case, _ in answered], [row for _, row in answered])
    settings = sampling.model_dump(exclude_none=True, exclude={"seed", "max_tokens"})
    return {"sampling": settings} | {name: figures[name].value for name in SAMPLED}


def predictions(cases: Sequence[Case], answers: Mapping[str, Answers]) -> Iterator[dict[str, Any]]:
    """One line of predictions.jsonl for each test row, with what every contestant answered."""
    for number, case in enumerate(cases):
        line: dict[str, Any] = {"row": case.name, "messages": case.messages, "wanted": case.reference}
        for name, own in answers.items():
            record = {key: value for key, value in own["answers"][number].items() if key != "row"}
            line[name] = record | {"nats": own["likelihood"][number]["nats"]}
        yield line


def _in_all(answers: Mapping[str, Answers], kind: str) -> list[bool]:
    """For each row, whether every contestant has its likelihood: only such rows can be compared."""
    records_by_row = zip(*(own[kind] for own in answers.values()), strict=True)
    return [all(record["tokens"] for record in records) for records in records_by_row]


def _nats_and_tokens(rows: Sequence[AnswerRecord], comparable: Sequence[bool]) -> dict[str, list[float]]:
    """Nats and tokens of each row; 0 of both where the row cannot be compared, so that it adds nothing."""
    return {
        "nats": [row["nats"] if counts else 0.0 for row, counts in zip(rows, comparable, strict=True)],
        "tokens": [row["tokens"] if counts else 0 for row, counts in zip(rows, comparable, strict=True)],
    }


def _of_texts(cases: Sequence[Case], rows: Sequence[AnswerRecord], **more: Any) -> dict[str, Measure]:
    """The measures of answers; a row without an answer counts as an empty one."""
    return scores.score_answers(
        [row.get("answer", "") for row in rows],
        [case.reference for case in cases],
        finish_reasons=[row.get("finish_reason") for row in rows],
        **more,
    )


def _of_contestant(cases: Sequence[Case], own: Answers, comparable: Sequence[bool]) -> dict[str, Measure]:
    """All measures of what one contestant answered to the test rows."""
    rows = own["answers"]
    return _of_texts(
        cases,
        rows,
        output_tokens=[row.get("completion_tokens") for row in rows],
        seconds=[row.get("seconds") for row in rows],
        **_nats_and_tokens(own["likelihood"], comparable),
    )


def _of_panel(panel: Panel, own: Answers, answered: Sequence[bool], comparable: Sequence[bool]) -> dict[str, Measure]:
    """The measures of what must not be forgotten.

    Args:
        answered: for each question of the panel, whether both models answered it.
        comparable: for each of its paragraphs, whether every contestant has its likelihood.
    """
    questions = [question for question, both in zip(panel.questions, answered, strict=True) if both]
    texts = [row["answer"] for row, both in zip(own["general"], answered, strict=True) if both]
    return {
        "general_questions": forgetting.share_right(questions, texts),
        "prose_perplexity": forgetting.prose_perplexity(**_nats_and_tokens(own["prose"], comparable)),
    }


def _unanswered(own: Answers) -> dict[str, int]:
    """How many rows of each kind of task have no answer, or no likelihood; kinds without such rows are left out."""
    counts = {kind: sum("error" in row or "refused" in row for row in rows) for kind, rows in own.items()}
    return {kind: count for kind, count in counts.items() if count}


def _served_against_trained(recorded: Sequence[Any], served: Sequence[AnswerRecord]) -> dict[str, Any]:
    """Whether serving changes the score: perplexity on held-out rows, of the trained model on record and as served."""
    pairs = [(trained, row) for trained, row in zip(recorded, served, strict=True) if row["tokens"]]
    tokens = sum(row["tokens"] for _, row in pairs)
    if not tokens:
        return {"tokens": 0, "perplexity": None}
    nats = {
        "trained": -sum(sum(trained["trained"]) for trained, _ in pairs),
        "served": sum(row["nats"] for _, row in pairs),
    }
    return {"tokens": tokens, "perplexity": {side: math.exp(value / tokens) for side, value in nats.items()}}
