"""One self-contained page about a run: the verdict first, then everything it rests on, in the reader's language.

Built from the files in the run's folder alone; where one is missing, the page says so.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, jsonl_log, manifest
from lockstep.artifacts.manifest import Manifest
from lockstep.evaluation import answer_kinds, answer_view, catalogue, headline, next_steps
from lockstep.model import coverage
from lockstep.serving import gate_report
from lockstep.settings import commands
from lockstep.text import json_text, language
from lockstep.text.language import phrase
from lockstep.training import loss_plot

PAGE = Path(__file__).with_name("report_page.html")
SIDES = ("base", "tuned")
CURVE = "loss by step"
STAGES = (filenames.DATA, filenames.ADAPTER, filenames.MERGED)  # whose commands and versions the page shows


def write(run_dir: Path, evaluation: Path | None, file: Path) -> None:
    """Write the page.

    Args:
        run_dir: the run's folder.
        evaluation: the folder with metrics.json and predictions.jsonl; None where nothing was evaluated.
        file: where the page goes.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    stages = _stages(run_dir)
    gate = gate_report.read(run_dir / filenames.SERVE)
    text = page.render(
        _=phrase,
        opening_tag=Markup(opening_tag()),
        run=run_dir.name,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        loss_curve=_loss_curve(run_dir / filenames.TRAINING_LOG),
        final_losses=_final_losses(run_dir / filenames.TRAINING_LOG),
        ledger=_json(run_dir / filenames.DATA / filenames.LEDGER),
        weights=_weights(run_dir / filenames.ADAPTER / filenames.COVERAGE),
        merge=_json(run_dir / filenames.MERGED / filenames.MERGE_REPORT),
        gate=gate,
        replaced=gate_report.replaced(gate) if gate else [],
        stages=stages,
        typed=_commands(stages),
        evaluate_command=commands.make("evaluate"),
        pictogram=headline.PICTOGRAM,
        title_of=lambda name: phrase(catalogue.title(name)),
        translated=language.translated,
        **(_evaluation(evaluation, run_dir, stages) if evaluation else {}),
    )
    file.write_text(text, encoding="utf-8")


def opening_tag() -> str:
    """The tag that begins a page in the current language."""
    return f'<html lang="{language.html_code()}">'


def _json(file: Path) -> Any:
    return atomic.read_json(file) if file.exists() else None


def _weights(file: Path) -> list[dict[str, Any]]:
    """The lines of the account of weights."""
    return coverage.table(atomic.read_json(file)) if file.exists() else []


def _evaluation(folder: Path, run_dir: Path, stages: Mapping[str, Manifest]) -> dict[str, Any]:
    """What the page shows of an evaluation."""
    metrics, predictions = complete(folder), folder / filenames.PREDICTIONS
    kind, sheet = metrics["answers"]["kind"], paths.label(run_dir / filenames.SHEET)
    answers = list(answer_view.rows(predictions, kind))
    lines = headline.lines(metrics)
    memory, measured = headline.forgotten(metrics)
    return {
        "metrics": metrics,
        "for_people": headline.is_for_people(metrics),
        "outcome": headline.outcome(lines),
        "sentence": headline.sentence(metrics, lines),
        "why": headline.kind(metrics),
        "lines": lines,
        "people": headline.people(metrics, sheet),
        "memory": memory,
        "memory_lines": measured,
        "steps": next_steps.steps(metrics, facts(run_dir, stages), commands.make),
        "table": _table(metrics),
        "forgotten": _table(metrics["forgetting"]),
        "verdict": _verdict(metrics),
        "answers": answers[: answer_view.ROWS],
        "outcomes": _outcomes(kind),
        "left_out": max(0, len(answers) - answer_view.ROWS),
    }


def complete(folder: Path) -> dict[str, Any]:
    """The metrics of an evaluation; what those of an older one lack is computed from its predictions."""
    metrics: dict[str, Any] = atomic.read_json(folder / filenames.METRICS)
    if "answers" not in metrics:
        rows = [row for _, row in json_text.json_lines(folder / filenames.PREDICTIONS)]
        texts = [[row[side].get("answer", "") for row in rows] for side in SIDES]
        metrics["answers"] = answer_kinds.summary([row["wanted"] for row in rows], texts[0], texts[1], seed=0)
    return metrics


def facts(run_dir: Path, stages: Mapping[str, Manifest]) -> next_steps.Facts:
    """What advice needs to know of a run, from the manifests of its stages."""
    config = {name: record.config for name, record in stages.items()}
    train, data = config.get(filenames.ADAPTER, {}).get("train", {}), config.get(filenames.DATA, {}).get("data", {})
    log = jsonl_log.read(run_dir / filenames.TRAINING_LOG)
    return next_steps.Facts(
        run=run_dir.name,
        learning_rate=train.get("learning_rate"),
        epochs=train.get("num_train_epochs"),
        held_out_losses=[record["eval_loss"] for record in log if "eval_loss" in record],
        test_files=data.get("test_file", ()),
        test_share=data.get("test_share", 0.1),
        sheet=paths.label(run_dir / filenames.SHEET),
    )


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
                "title": phrase(catalogue.title(name)),
                "meaning": phrase(entry.meaning) if entry else "",
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
    """The titles of the measures in which tuned is better, worse, or not known to be either."""
    names: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name in catalogue.in_order(set(metrics["verdict"])):
        names[metrics["verdict"][name]].append(phrase(catalogue.title(name)))
    return names


def _outcomes(kind: str) -> dict[str, str]:
    """Name of an outcome → in words; in the order of the page's filter."""
    checkable = {
        "gained": phrase("only tuned is right"),
        "lost": phrase("only base is right"),
        "both": phrase("both are right"),
        "neither": phrase("neither is right"),
    }
    if kind not in (answer_kinds.TEXT, answer_kinds.MIXED):
        return checkable
    closer = {
        "closer": phrase("tuned is closer to the reference"),
        "farther": phrase("base is closer to the reference"),
    }
    return closer | checkable | {"neither": phrase("about as close")}


def _loss_curve(log_file: Path) -> str | None:
    """The loss curve as SVG; its words, which are text in it, in the reader's language."""
    curve = loss_plot.svg(log_file, CURVE)
    for words in (CURVE, *loss_plot.WORDS) if curve else ():
        curve = curve and curve.replace(f">{words}<", f">{phrase(words)}<")
    return curve


def _final_losses(log_file: Path) -> dict[str, float]:
    """Label → the last loss of that kind in a metrics.jsonl."""
    records = jsonl_log.read(log_file)
    losses = {}
    for key, label in (("loss", phrase("training loss")), ("eval_loss", phrase("held-out loss"))):
        values = [record[key] for record in records if key in record]
        if values:
            losses[label] = values[-1]
    return losses


def steps(run_dir: Path, metrics: Mapping[str, Any]) -> list[next_steps.Step]:
    """What to do next, with commands for the present program's config and run."""
    return next_steps.steps(metrics, facts(run_dir, _stages(run_dir)), commands.make)


def _stages(run_dir: Path) -> dict[str, Manifest]:
    return {name: manifest.read(run_dir / name) for name in STAGES if (run_dir / name / filenames.MANIFEST).exists()}


def _commands(stages: Mapping[str, Manifest]) -> list[str]:
    """The stages' commands, as they were given."""
    given = []
    for record in stages.values():
        script = paths.label(Path(record.argv[0]).resolve()) if record.argv else ""
        given.append(" ".join(["python", script, *record.argv[1:]]))
    return given
