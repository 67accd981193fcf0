import json
import re
from pathlib import Path

import pytest

from lockstep.training import loss_plot


@pytest.fixture
def log(tmp_path: Path) -> Path:
    records = [{"step": n, "loss": 3 / n, "learning_rate": 1e-4} for n in range(1, 9)] + [{"step": 8, "eval_loss": 0.5}]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.mark.parametrize(("kind", "beginning"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_equal_logs_give_an_equal_picture(log: Path, tmp_path: Path, kind: str, beginning: bytes) -> None:
    pictures = [tmp_path / f"{name}.{kind}" for name in ("first", "second")]
    for picture in pictures:
        loss_plot.draw(log, picture, "run")
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].read_bytes().startswith(beginning)


def test_a_page_gets_an_svg_element_with_nothing_that_differs_between_equal_logs(log: Path) -> None:
    text = loss_plot.svg(log, "run")
    assert text is not None and text == loss_plot.svg(log, "run")
    assert text.startswith("<svg") and text.rstrip().endswith("</svg>")
    for label in ("training", "held out", "optimizer step", "learning rate (dashed)", "run"):
        assert f">{label}</text>" in text
    assert not re.search(r"<!DOCTYPE|<dc:date>|Matplotlib v", text)


def test_a_log_without_losses_has_no_curve(tmp_path: Path) -> None:
    assert loss_plot.svg(tmp_path / "missing.jsonl", "run") is None
