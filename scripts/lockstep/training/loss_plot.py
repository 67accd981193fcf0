"""The loss curve of a training, as a picture: a file, or SVG inside a page."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep.artifacts import jsonl_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# key in metrics.jsonl → label, colour, marker. Evaluations are few: each is a point.
LOSSES = {"loss": ("training", "#4878a8", ""), "eval_loss": ("held out", "#c44e52", "o")}
RATE, STEP, LOSS = "learning rate (dashed)", "optimizer step", "loss, nats per supervised token"
WORDS = (RATE, STEP, LOSS, *(label for label, _, _ in LOSSES.values()))  # all that stands in a picture beside its title


def draw(log_file: Path, picture: Path, title: str) -> None:
    """Training loss, held-out loss and learning rate over the optimizer steps. Equal logs give equal bytes.

    Args:
        log_file: a metrics.jsonl.
        picture: where the picture goes; its suffix, .png or .svg, says which format.
        title: Latin text; the fonts for Chinese are not installed everywhere.
    """
    _save(_figure(jsonl_log.read(log_file), title), picture, picture.suffix.removeprefix("."))


def svg(log_file: Path, title: str) -> str | None:
    """The same picture as an <svg> element for an HTML page; None where the log holds no loss yet."""
    records = jsonl_log.read(log_file)
    if not any(key in record for record in records for key in LOSSES):
        return None
    text = io.StringIO()
    _save(_figure(records, title), text, "svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _save(figure: "Figure", target: Path | io.StringIO, kind: str) -> None:
    """Write a figure without metadata and random ids, so that equal figures give equal bytes."""
    import matplotlib

    stable = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else {"Software": None}
    # text stays text, so that the reader's fonts are used
    with matplotlib.rc_context({"svg.hashsalt": "lockstep", "svg.fonttype": "none"}):
        figure.savefig(target, format=kind, metadata=stable)


def _figure(records: list[dict[str, Any]], title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for key, (label, color, marker) in LOSSES.items():
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=color, marker=marker, markersize=4, linewidth=1.2)
    rates = [(record["step"], record["learning_rate"]) for record in records if "learning_rate" in record]
    if rates:
        right = axes.twinx()
        right.plot(*zip(*rates, strict=True), color="#999999", linewidth=0.8, linestyle="--")
        right.set_ylabel(RATE, color="#777777")
        right.set_ylim(bottom=0)
    axes.set_xlabel(STEP)
    axes.set_ylabel(LOSS)
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend()
    return figure
