"""One self-contained page about a run: the verdict first, then everything it rests on.

Built from the files in the run's folder alone; where one is missing, the page says so.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, jsonl_log, manifest
from lockstep.artifacts.manifest import Manifest
from lockstep.evaluation import catalogue, text_diff
from lockstep.model import coverage
from lockstep.serving import gate_report
from lockstep.training import loss_plot

PAGE = Path(__file__).with_name("report_page.html")
ROWS = 300  # answers on the page
CHARACTERS = 4000  # of one text
SIDES = ("base", "tuned")
STAGES = (filenames.DATA, filenames.ADAPTER, filenames.MERGED)  # whose commands and versions the page shows
# (base is right, tuned is right) → the name by which the page filters and sorts
OUTCOMES = {(True, True): "both", (False, True): "gained", (True, False): "lost", (False, False): "neither"}


def write(run_dir: Path, evaluation: Path | None, file: Path) -> None:
    """Write the page.

    Args:
        run_dir: the run's folder.
        evaluation: the folder with metrics.json and predictions.jsonl; None where nothing was evaluated.
        file: where the page goes.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    stages = {name: manifest.read(run_dir / name) for name in STAGES if (run_dir / name / filenames.MANIFEST).exists()}
    gate, log_file = gate_report.read(run_dir / filenames.SERVE), run_dir / filenames.TRAINING_LOG
    text = page.render(
        run=run_dir.name,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        loss_curve=loss_plot.svg(log_file, "loss by step"),
        final_losses=_final_losses(log_file),
        ledger=_json(run_dir / filenames.DATA / filenames.LEDGER),
        weights=_weights(run_dir / filenames.ADAPTER / filenames.COVERAGE),
        merge=_json(run_dir / filenames.MERGED / filenames.MERGE_REPORT),
        gate=gate,
        replaced=gate_report.replaced(gate) if gate else [],
        stages=stages,
        commands=_commands(stages),
        **(_evaluation(evaluation) if evaluation else {}),
    )
    file.write_text(text, encoding="utf-8")


def _json(file: Path) -> Any:
    return atomic.read_json(file) if file.exists() else None


def _weights(file: Path) -> list[dict[str, Any]]:
    """The lines of the account of weights."""
    return coverage.table(atomic.read_json(file)) if file.exists() else []


def _evaluation(folder: Path) -> dict[str, Any]:
    """What the page shows of an evaluation."""
    metrics = atomic.read_json(folder / filenames.METRICS)
    answers = list(_answers(folder / filenames.PREDICTIONS))
    return {
        "metrics": metrics,
        "table": _table(metrics),
        "forgotten": _table(metrics["forgetting"]),
        "verdict": _verdict(metrics),
        "answers": answers[:ROWS],
        "left_out": max(0, len(answers) - ROWS),
    }


def _table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each measure: both sides with their intervals, the difference, the verdict."""
    lines = []
    for name in catalogue.in_order(set(metrics["base"])):
        base, tuned = metrics["base"][name], metrics["tuned"][name]
        if base["value"] is None and tuned["value"] is None:
            continue
        entry = catalogue.CATALOGUE.get(name)
        lines.append(
            {
                "name": name,
                "meaning": entry.meaning if entry else "",
                "base": base,
                "tuned": tuned,
                "difference": metrics["difference"][name],
                "verdict": metrics["verdict"].get(name),
                "scale": _scale(base, tuned),
            }
        )
    return lines


def _scale(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> tuple[float, float]:
    """The ends of a measure's bar: 0 to 1 where everything fits, otherwise as far as values and intervals reach."""
    ends = []
    for side in (base, tuned):
        ends += [side["value"], *(side["ci95"] or [])]
    ends = [end for end in ends if end is not None]
    low, high = min(0.0, *ends), max([*ends, 1e-9])  # never of width 0
    return low, 1.0 if low >= 0 and high <= 1 else high


def _verdict(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    """The measures in which tuned is better, worse, or not known to be either."""
    names: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name in catalogue.in_order(set(metrics["verdict"])):
        names[metrics["verdict"][name]].append(name)
    return names


def _answers(file: Path) -> Iterator[dict[str, Any]]:
    """Each row of predictions.jsonl, with who is right and how the answers differ from the reference."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            texts = {side: row[side].get("answer") for side in SIDES}
            right = {side: texts[side] is not None and texts[side].strip() == row["wanted"].strip() for side in SIDES}
            row |= {"number": number, "right": right, "outcome": OUTCOMES[right["base"], right["tuned"]]}
            if number < ROWS:  # later rows are only counted
                reference = row["wanted"][:CHARACTERS]
                row["spans"] = {side: text_diff.spans(reference, (texts[side] or "")[:CHARACTERS]) for side in SIDES}
            yield row


def _final_losses(log_file: Path) -> dict[str, float]:
    """Label → the last loss of that kind in a metrics.jsonl."""
    records = jsonl_log.read(log_file)
    losses = {}
    for key, label in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        values = [record[key] for record in records if key in record]
        if values:
            losses[label] = values[-1]
    return losses


def _commands(stages: Mapping[str, Manifest]) -> list[str]:
    """The stages' commands, as they were given."""
    commands = []
    for record in stages.values():
        script = paths.label(Path(record.argv[0]).resolve()) if record.argv else ""
        commands.append(" ".join(["python", script, *record.argv[1:]]))
    return commands
