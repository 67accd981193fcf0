"""Figures of evaluations, as eval/metrics.json has them, of answers that are known."""

from typing import Any

from lockstep.evaluation import answer_kinds, bootstrap, forgetting, scores

PERSONA = [f"臣妾给皇上请安，这是第{number}次了。" for number in range(30)]


def metrics(references: list[str], base: list[str], tuned: list[str], remembered: int = 20) -> dict[str, Any]:
    """Metrics whose tuned model predicts the references better, and still answers so many of 20 general questions."""
    nats = [[3.0 + number % 3 for number in range(len(references))], [1.0] * len(references)]
    sides = [
        scores.score_answers(
            texts, references, finish_reasons=["stop"] * len(texts), nats=side_nats, tokens=[1] * len(texts)
        )
        for texts, side_nats in zip((base, tuned), nats, strict=True)
    ]
    questions = forgetting.load().questions
    answers = [question.accepted[0] for question in questions]
    kept = [answer if number < remembered else "" for number, answer in enumerate(answers)]
    memory = [{"general_questions": forgetting.share_right(questions, texts)} for texts in (answers, kept)]
    return bootstrap.compare(*sides, draws=500) | {
        "rows": len(references),
        "answers": answer_kinds.summary(references, base, tuned, 0),
        "forgetting": bootstrap.compare(*memory, draws=500) | {"rows": {"general_questions": len(questions)}},
        "people": None,
        "errors": {"base": 0, "tuned": 0},
        "overlap": {"leaked": 0, "near_pairs": {"rows": 0}},
        "asked": {"rows": None, "max_tokens": 512},
    }
