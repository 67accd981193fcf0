"""What the answers of an evaluation are worth: everything that eval/metrics.json and predictions.jsonl hold."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockstep.client.batch_file import AnswerRecord
from lockstep.evaluation import bootstrap, contestants, forgetting, measures, scores, train_test_overlap
from lockstep.evaluation.contestants import Case
from lockstep.evaluation.forgetting import Panel
from lockstep.evaluation.measures import Measure
from lockstep.settings.schema import Sampling

Found = dict[str, list[AnswerRecord]]  # what a contestant answered, by the kind of task
SAMPLED = ("repetition_rate", "loop_rate", "distinct_2", "stop_rate", "output_characters", "exact_match", "rouge_l")


def metrics(
    asked: Sequence[Case], found: dict[str, Found], panel: Panel, recorded: Sequence[Any], train: Path, seed: int
) -> dict[str, Any]:
    """eval/metrics.json, but for what says how it was asked.

    Args:
        found: by contestant, `base` and `tuned` among them.
        recorded: rows of reference.json, in the order in which `tuned` was asked for its `reference`.
        train: the split that test rows must not overlap with.
    """
    figures = {name: _measures(asked, one, _known(found, "likelihood")) for name, one in found.items()}
    both = {name: found[name] for name in ("base", "tuned")}
    answered = [
        not any("error" in row for row in rows) for rows in zip(*(one["general"] for one in both.values()), strict=True)
    ]
    kept = {name: _remembered(panel, one, answered, _known(found, "prose")) for name, one in both.items()}
    result = bootstrap.report(figures["base"], figures["tuned"], seed) | {
        "rows": len(asked),
        "errors": {name: sum("error" in row for row in one["answers"]) for name, one in found.items()},
        "unanswered": {name: _unanswered(one) for name, one in found.items()},
        "forgetting": bootstrap.report(kept["base"], kept["tuned"], seed),
        "overlap": train_test_overlap.find(contestants.pairs(train), [case.pair for case in asked]).summary(),
        "serving": _served_against_trained(recorded, found["tuned"]["reference"]),
    }
    if others := [name for name in found if name not in ("base", "tuned")]:
        result["runs"] = {name: bootstrap.report(figures["tuned"], figures[name], seed)["tuned"] for name in others}
    return result


def of_sampling(asked: Sequence[Case], way: Sampling, rows: Sequence[AnswerRecord]) -> dict[str, Any]:
    """What a way of sampling does to repetition, length and correctness of the first rows' answers, where there is one."""
    pairs = [(case, row) for case, row in zip(asked, rows, strict=False) if "error" not in row]
    found = _of_texts([case for case, _ in pairs], [row for _, row in pairs])
    settings = way.model_dump(exclude_none=True, exclude={"seed", "max_tokens"})
    return {"sampling": settings} | {name: found[name].value for name in SAMPLED}


def predictions(asked: Sequence[Case], found: dict[str, Found]) -> Iterator[dict[str, Any]]:
    """One line for each test row, with what every contestant made of it."""
    for number, case in enumerate(asked):
        row: dict[str, Any] = {"row": case.name, "messages": case.messages, "wanted": case.wanted}
        for name, one in found.items():
            said = {key: value for key, value in one["answers"][number].items() if key != "row"}
            row[name] = said | {"nats": one["likelihood"][number]["nats"]}
        yield row


def _known(found: dict[str, Found], kind: str) -> list[bool]:
    """Rows whose likelihood all contestants have that were asked: only those can be compared."""
    return [all(row["tokens"] for row in rows) for rows in zip(*(one[kind] for one in found.values()), strict=True)]


def _perplexity(rows: Sequence[AnswerRecord], known: Sequence[bool]) -> dict[str, list[float]]:
    """Nats and tokens of each row; none of those that are not known."""
    return {key: [row[key] * there for row, there in zip(rows, known, strict=True)] for key in ("nats", "tokens")}


def _of_texts(asked: Sequence[Case], rows: Sequence[AnswerRecord], **more: Any) -> dict[str, Measure]:
    """The measures of answers; a row without an answer counts as an empty one."""
    return scores.measure(
        [row.get("answer", "") for row in rows],
        [case.wanted for case in asked],
        finish_reasons=[row.get("finish_reason") for row in rows],
        **more,
    )


def _measures(asked: Sequence[Case], found: Found, known: Sequence[bool]) -> dict[str, Measure]:
    rows = found["answers"]
    tokens, seconds = ([row.get(key) for row in rows] for key in ("completion_tokens", "seconds"))
    return _of_texts(asked, rows, output_tokens=tokens, seconds=seconds, **_perplexity(found["likelihood"], known))


def _unanswered(found: Found) -> dict[str, int]:
    """How many questions of each kind have no answer, or no likelihood."""
    counts = {kind: sum("error" in row or "refused" in row for row in rows) for kind, rows in found.items()}
    return {kind: count for kind, count in counts.items() if count}


def _remembered(panel: Panel, found: Found, answered: Sequence[bool], known: Sequence[bool]) -> dict[str, Measure]:
    """The measures of what must not be forgotten; of questions those that both models have answered."""
    rows = [row for row, there in zip(found["general"], answered, strict=True) if there]
    questions = [one for one, there in zip(panel.questions, answered, strict=True) if there]
    return {
        "general_questions": forgetting.measure(questions, [row["answer"] for row in rows]),
        "prose_perplexity": measures.perplexity(**_perplexity(found["prose"], known)),
    }


def _served_against_trained(recorded: Sequence[Any], served: Sequence[AnswerRecord]) -> dict[str, Any]:
    """Whether serving changes the score: perplexity on held-out rows, of the trained model on record and as served."""
    pairs = [(row, one) for row, one in zip(recorded, served, strict=True) if one["tokens"]]
    tokens = sum(one["tokens"] for _, one in pairs)
    if not tokens:
        return {"tokens": 0, "perplexity": None}
    nats = {"trained": -sum(sum(row["trained"]) for row, _ in pairs), "served": sum(one["nats"] for _, one in pairs)}
    return {"tokens": tokens, "perplexity": {side: math.exp(value / tokens) for side, value in nats.items()}}
