"""What stage 05 prints: the headline, a table of the main measures, what was forgotten, and what to do next."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from lockstep.evaluation import catalogue, headline
from lockstep.evaluation.headline import Line, Metrics
from lockstep.evaluation.next_steps import Step
from lockstep.text.language import phrase

WIDTHS = (20, 26, 26)  # of the table's first columns


def lines(metrics: Metrics, sheet: str, steps: Sequence[Step]) -> Iterator[str]:
    """An evaluation as lines of text, in the reader's language.

    Args:
        metrics: of eval/metrics.json.
        sheet: the label of sheet.csv.
        steps: what to do next.
    """
    yield ""
    yield from _table(metrics)
    yield ""
    chosen = headline.lines(metrics)
    yield headline.sentence(metrics, chosen)
    yield from _listed(chosen)
    yield headline.kind(metrics)
    if headline.is_for_people(metrics):
        yield headline.people(metrics, sheet)
    memory, measured = headline.forgotten(metrics)
    yield memory
    yield from _listed(measured)
    yield ""
    yield phrase("What to do next")
    for number, step in enumerate(steps, 1):
        yield f"{number}. {step.text}"
        yield from (f"     {command}" for command in step.commands)


def _table(metrics: Metrics) -> Iterator[str]:
    """The measures that the terminal shows, with their intervals."""
    yield phrase(
        "{rows} held-out rows; 95 % intervals; the verdict by a 99 % interval of the paired difference",
        rows=metrics["rows"],
    )
    yield ""
    yield _columns("", phrase("base"), phrase("tuned")) + "   " + phrase("verdict")
    for name in [name for name, entry in catalogue.ANSWERS.items() if entry.in_terminal and name in metrics["base"]]:
        verdict = metrics["verdict"].get(name)
        needed = metrics["difference"][name].get("rows_needed")
        note = phrase("about {rows} rows would decide", rows=needed) if verdict == "undecided" and needed else ""
        figures = _columns(phrase(catalogue.title(name)), *(_cell(metrics[side][name]) for side in ("base", "tuned")))
        yield f"{figures}   {phrase(verdict or '')}{phrase(' ({note})', note=note) if note else ''}".rstrip()


def _cell(figure: dict[str, Any]) -> str:
    """A value with its interval."""
    if figure["value"] is None:
        return "–"
    ends = figure["ci95"]
    return f"{figure['value']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _columns(title: str, *figures: str) -> str:
    """A title on the left and figures on the right of their columns; Chinese characters take two places."""
    first, *others = WIDTHS
    padded = [title + " " * (first - _places(title))]
    padded += [" " * (width - _places(figure)) + figure for width, figure in zip(others, figures, strict=True)]
    return "  " + " ".join(padded)


def _places(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _listed(chosen: Sequence[Line]) -> Iterator[str]:
    for line in chosen:
        verdict = f"  {headline.PICTOGRAM[line.verdict]} {phrase(line.verdict)}" if line.verdict else ""
        note = phrase(" ({note})", note=line.note) if line.note else ""
        yield f"  {line.title}{phrase(': ')}{line.base} → {line.tuned}{verdict}{note}"
