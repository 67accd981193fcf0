"""Advice and its commands."""

import shlex
from dataclasses import replace
from typing import Any

import pytest
from support.evaluations import PERSONA, metrics

from lockstep.evaluation import next_steps
from lockstep.evaluation.next_steps import Facts

FACTS = Facts("r", 2e-4, 3.0, [2.0, 1.5, 1.2], [], 0.1, "outputs/r/sheet.csv")


def make(goal: str, *words: str) -> str:
    return f"make {goal} {shlex.join(words)}".strip()


def commands(figures: dict[str, Any], facts: Facts = FACTS) -> list[str]:
    steps = next_steps.steps(figures, facts, make)
    assert all(step.text and step.commands for step in steps)
    return [command for step in steps for command in step.commands]


@pytest.fixture
def better() -> dict[str, Any]:
    return metrics(PERSONA, ["不知道"] * 30, PERSONA)


def test_what_is_better_is_judged_and_served(better: dict[str, Any]) -> None:
    assert commands(better) == ["make report", "make serve", "make chat"]
    assert commands(better | {"people": {"accepted": 9}}) == ["make serve", "make chat"]


def test_what_was_forgotten_is_trained_more_gently() -> None:
    figures = metrics(PERSONA, ["不知道"] * 30, PERSONA, remembered=0)
    gently = "make evaluate --run r-gentle --train.learning_rate 0.0001 --train.num_train_epochs 1.5"
    assert commands(figures)[0] == gently
    assert commands(figures, replace(FACTS, learning_rate=None, epochs=None))[0] == "make evaluate --run r-gentle"


def test_missing_answers_and_rows_that_were_trained_on_come_first(better: dict[str, Any]) -> None:
    figures = better | {"errors": {"base": 2, "tuned": 1}, "overlap": {"leaked": 3, "near_pairs": {"rows": 9}}}
    first, second, *_ = next_steps.steps(figures, FACTS, make)
    assert "3 answers are missing" in first.text and first.commands == ("make evaluate --force",)
    assert "3 test rows" in second.text and len(second.commands) == 3
    figures = better | {"overlap": {"leaked": 0, "near_pairs": {"rows": 9}}}
    assert "near_duplicate" in commands(figures)[0]


def test_answers_that_do_not_end_are_given_room_or_sampled_otherwise(better: dict[str, Any]) -> None:
    better["tuned"]["stop_rate"]["value"] = 0.6
    assert commands(better)[0] == "make evaluate --evaluate.max_tokens 1024 --force"
    better["tuned"]["loop_rate"]["value"] = 0.3
    assert commands(better)[0] == "make evaluate --evaluate.sampling_rows 20 --force"


def test_a_worse_model_is_not_served_and_its_losses_say_why(better: dict[str, Any]) -> None:
    better["verdict"]["perplexity"] = "worse"
    assert commands(better)[0].startswith("make evaluate --run r-gentle") and "make serve" not in commands(better)
    overfitted = replace(FACTS, held_out_losses=[2.0, 1.2, 1.6])
    assert commands(better, overfitted)[0] == "make evaluate --run r-best --train.load_best_model_at_end true"


@pytest.mark.parametrize(
    ("facts", "asked", "needed", "command"),
    [
        ({}, None, 60, "make evaluate --run r-longer --train.num_train_epochs 6"),  # the loss still fell
        ({"held_out_losses": []}, 30, 60, "make evaluate --evaluate.rows null --force"),
        ({"held_out_losses": []}, None, 60, "make evaluate --run r-more --data.test_share 0.2"),
        ({"held_out_losses": []}, None, 600, "make evaluate --run r-more"),
        ({"held_out_losses": [], "test_files": ["t.jsonl"]}, None, 60, "make evaluate --run r-more"),
        ({"held_out_losses": []}, None, 9_999_999, "make evaluate --run r-longer --train.num_train_epochs 6"),
        ({"held_out_losses": []}, None, None, "make evaluate --run r-longer --train.num_train_epochs 6"),
    ],
)
def test_where_nothing_is_decided_more_rows_or_more_training_help(
    better: dict[str, Any], facts: dict[str, Any], asked: int | None, needed: int | None, command: str
) -> None:
    for name in ("perplexity", "stop_rate", "chrf"):
        better["verdict"][name], better["difference"][name]["rows_needed"] = "undecided", needed
    better["asked"]["rows"] = asked
    assert commands(better, replace(FACTS, **facts))[0] == command
