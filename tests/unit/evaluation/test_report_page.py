"""The report, from files of a run that were written here, so that every figure on it is known."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lockstep.artifacts import filenames
from lockstep.evaluation import (
    answer_kinds,
    answer_view,
    bootstrap,
    forgetting,
    report_page,
    scores,
    train_test_overlap,
)

ROWS = [  # reference, base's answer, tuned's answer
    ("北京", "我不知道", "北京"),
    ("Paris", "Paris", "It is Paris"),
    ("four", "four", "four "),
    ("red", None, "blue"),
    ("<b>bold</b>", "<script>alert(1)</script>", "<b>bold</b>"),
]


def metrics(rows: list[tuple[str, str | None, str]]) -> dict[str, Any]:
    references = [reference for reference, _, _ in rows]
    base_texts, tuned_texts = [answer or "" for _, answer, _ in rows], [answer for _, _, answer in rows]
    base = scores.score_answers(base_texts, references, finish_reasons=["length"] * len(rows))
    tuned = scores.score_answers(tuned_texts, references, finish_reasons=["stop"] * len(rows))
    questions = forgetting.load().questions
    right, wrong = ([text] * len(questions) for text in ("56", "no idea"))
    memory = [{"general_questions": forgetting.share_right(questions, texts)} for texts in (right, wrong)]
    pairs = [("q", reference) for reference in references]
    return bootstrap.compare(base, tuned, draws=200) | {
        "rows": len(rows),
        "errors": {"base": 1, "tuned": 0},
        "answers": answer_kinds.summary(references, base_texts, tuned_texts, 0),
        "forgetting": bootstrap.compare(memory[0], memory[1], draws=200),
        "overlap": train_test_overlap.find(pairs[:1], pairs).summary(),
        "serving": {"tokens": 0, "perplexity": None},
        "samplings": [],
        "people": None,
    }


def write_evaluation(folder: Path, rows: list[tuple[str, str | None, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / filenames.METRICS).write_text(json.dumps(metrics(rows)), encoding="utf-8")
    lines = []
    for number, (reference, base, tuned) in enumerate(rows):
        base_record = {"error": "no answer"} if base is None else {"answer": base, "finish_reason": "length"}
        line = {"row": f"t:{number}", "messages": [{"role": "user", "content": f"q{number}"}], "wanted": reference}
        lines.append(json.dumps(line | {"base": base_record, "tuned": {"answer": tuned}}) + "\n")
    (folder / filenames.PREDICTIONS).write_text("".join(lines), encoding="utf-8")
    return folder


def written(run_dir: Path, evaluation: Path | None) -> str:
    report_page.write(run_dir, evaluation, run_dir / filenames.REPORT)
    return (run_dir / filenames.REPORT).read_text(encoding="utf-8")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def test_a_run_without_any_output_says_what_is_missing(run_dir: Path) -> None:
    page = written(run_dir, None)
    for text in (
        "Nothing was evaluated yet",
        "No training is on record",
        "No data stage is on record",
        "Nothing is merged",
    ):
        assert text in page
    assert "<svg" not in page


def test_answers_say_who_is_right_and_what_differs(run_dir: Path) -> None:
    page = written(run_dir, write_evaluation(run_dir / "eval", ROWS))
    outcomes = re.findall(r'data-outcome="(\w+)" data-number="(\d)"', page)
    assert outcomes == [("gained", "0"), ("lost", "1"), ("both", "2"), ("neither", "3"), ("gained", "4")]
    assert "我不知道" in page and "<ins>我不知道</ins>" not in page  # nothing like the reference
    assert "(cut off)" in page and '<p class="worse">no answer</p>' in page


def test_what_a_model_writes_is_text_and_nothing_else(run_dir: Path) -> None:
    page = written(run_dir, write_evaluation(run_dir / "eval", ROWS))
    assert "alert(1)" in page and "<script>alert" not in page and "<b>bold" not in page
    assert page.count("<script>") == 1


def test_the_verdict_names_measures_and_warns_of_leaks_and_of_what_was_forgotten(run_dir: Path) -> None:
    # equal rows, so that the verdicts are certain
    page = written(run_dir, write_evaluation(run_dir / "eval", [("北京", "我不知道", "北京")] * 40))
    assert "Yes, it got better." in page and "0 % → 100 %" in page
    assert "Whether it forgot anything is undecided; the questions and texts are few." in page
    assert "Better in: Exact match, " in page
    assert "40 test rows also occur in the training rows" in page
    assert "Without an answer: 1 rows of the base" in page
    assert "no direction is better" in page  # output characters


def test_measures_stand_in_the_catalogues_order_with_their_explanations(run_dir: Path) -> None:
    page = written(run_dir, write_evaluation(run_dir / "eval", ROWS))
    assert page.index("longest common subsequence of words") < page.index(
        "repeated 4-grams of an answer; lower is better"
    )
    assert "questions of general knowledge answered correctly" in page


def test_the_page_is_in_the_readers_language(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = write_evaluation(run_dir / "eval", ROWS)
    assert '<html lang="en">' in written(run_dir, evaluation)
    monkeypatch.setenv("LANGUAGE", "zh")
    page = written(run_dir, evaluation)
    assert '<html lang="zh-CN">' in page and "<title>mine：变好了吗？</title>" in page
    visible = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.S)
    assert not re.search(r"\b[a-z]{2,} [a-z]{2,} [a-z]{2,}\b", visible)  # no English sentence is left


def test_rows_beyond_the_pages_limit_are_counted(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_view, "ROWS", 3)
    page = written(run_dir, write_evaluation(run_dir / "eval", ROWS))
    assert page.count("<article") == 3 and "2 more are in predictions.jsonl" in page


def test_the_loss_curve_is_part_of_the_page_and_nothing_is_fetched(run_dir: Path) -> None:
    log = [{"step": 1, "loss": 2.5, "learning_rate": 1e-3}, {"step": 2, "loss": 1.25}, {"step": 2, "eval_loss": 1.5}]
    (run_dir / filenames.TRAINING_LOG).write_text("".join(json.dumps(record) + "\n" for record in log))
    page = written(run_dir, write_evaluation(run_dir / "eval", ROWS))
    assert (
        '<figure class="curve"' in page
        and "training loss 1.2500, held-out loss 1.5000" in page
        and ">training<" in page
    )
    assert "http://" not in page.replace("http://www.w3.org", "") and "src=" not in page and "@import" not in page


@pytest.mark.parametrize(
    ("base", "tuned", "scale"),
    [
        ({"value": 0.2, "ci95": [0.1, 0.3]}, {"value": 1.0, "ci95": None}, (0.0, 1.0)),
        ({"value": 20.0, "ci95": [10.0, 42.5]}, {"value": None, "ci95": None}, (0.0, 42.5)),
        ({"value": 0.0, "ci95": None}, {"value": -0.5, "ci95": None}, (-0.5, 1e-9)),
    ],
)
def test_a_bar_reaches_as_far_as_its_figures(base: Any, tuned: Any, scale: tuple[float, float]) -> None:
    assert report_page._scale(base, tuned) == pytest.approx(scale)
