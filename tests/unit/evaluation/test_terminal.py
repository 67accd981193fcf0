"""What stage 05 prints."""

import pytest
from support.evaluations import PERSONA, metrics

from lockstep.evaluation import terminal
from lockstep.evaluation.next_steps import Step


def test_the_terminal_says_in_either_language_what_to_do_next(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = metrics(PERSONA, ["不知道"] * 30, PERSONA)
    steps = [Step("Do this:", ("make chat",))]
    english = list(terminal.lines(figures, "outputs/r/sheet.csv", steps))
    assert "Yes, it got better." in english and english[-2:] == ["1. Do this:", "     make chat"]
    assert any(line.startswith("  Perplexity: ") and line.endswith("▲ better") for line in english)
    monkeypatch.setenv("LANGUAGE", "zh")
    chinese = list(terminal.lines(figures, "outputs/r/sheet.csv", steps))
    assert "变好了。" in chinese and any(line.startswith("  困惑度：") for line in chinese)
    figures_end = {terminal._places(line[: line.rindex("]")]) for line in chinese + english if line.count("]") == 2}
    assert len(figures_end) == 1  # columns stand below each other, whatever the language
