"""One self-contained page on a run: the verdict first, then everything that it rests on.

Built from the files of the run's folder alone; what is not there is left out and said so.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, jsonl_log, manifest
from lockstep.evaluation import text_diff
from lockstep.serving import gate_report

PAGE = Path(__file__).with_name("report_page.html")
ROWS = 300  # answers on the page
CHARACTERS = 4000  # of one text
# In this order, with what a reader may not know. Other measures follow by name.
NAMES = {
    "exact_match": "answers equal to the wanted one",
    "exact_match_normalised": "the same, but for case, width, spaces and punctuation at the ends",
    "field_accuracy": "fields of JSON answers that are right",
    "json_valid": "answers that are JSON",
    "accuracy": "right labels",
    "macro_f1": "mean F1 of the labels",
    "token_f1": "tokens shared with the wanted answer",
    "rouge_l": "longest common subsequence of words",
    "chrf": "character n-grams shared",
    "bleu": "word n-grams shared",
    "perplexity": "of the wanted answers; lower is better",
    "stop_rate": "answers that ended by themselves",
    "repetition_rate": "repeated 4-grams; lower is better",
    "loop_rate": "answers that are mostly one phrase; lower is better",
    "distinct_2": "different word pairs among all",
    "output_tokens": "length of an answer",
    "latency": "seconds for an answer, under load",
}


def write(run_dir: Path, evaluation: Path | None, file: Path) -> None:
    """The page.

    Args:
        run_dir: the run's folder.
        evaluation: the folder of metrics.json and predictions.jsonl, or None where there is none.
        file: where the page goes.
    """
    from jinja2 import Environment

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        PAGE.read_text(encoding="utf-8")
    )
    metrics = _json(evaluation / filenames.METRICS) if evaluation else None
    answers = list(_answers(evaluation / filenames.PREDICTIONS)) if evaluation else []
    stages = {
        name: manifest.read(run_dir / name)
        for name in ("data", "adapter", "merged")
        if (run_dir / name / filenames.MANIFEST).exists()
    }
    text = page.render(
        run=run_dir.name,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        metrics=metrics,
        table=_table(metrics) if metrics else [],
        verdict=_verdict(metrics) if metrics else None,
        forgotten=_table(metrics["forgetting"]) if metrics else [],
        answers=answers[:ROWS],
        left_out=max(0, len(answers) - ROWS),
        curve=_curve(run_dir / filenames.TRAINING_LOG),
        ledger=_json(run_dir / filenames.DATA / filenames.LEDGER),
        merge=_json(run_dir / filenames.MERGED / filenames.MERGE_REPORT),
        gate=(proved := gate_report.read(run_dir / filenames.SERVE)),
        replaced=gate_report.replaced(proved) if proved else [],
        training=_json(run_dir / filenames.ADAPTER / filenames.METRICS),
        stages=stages,
        command=_command(stages),
    )
    file.write_text(text, encoding="utf-8")


def _json(file: Path) -> Any:
    return atomic.read_json(file) if file.exists() else None


def _table(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each measure: both sides with their intervals, the difference, the verdict."""
    names = [name for name in NAMES if name in metrics["base"]] + sorted(metrics["base"].keys() - NAMES.keys())
    lines = []
    for name in names:
        base, tuned, change = metrics["base"][name], metrics["tuned"][name], metrics["difference"][name]
        if base["value"] is None and tuned["value"] is None:
            continue
        ends = [
            value for side in (base, tuned) for value in [side["value"], *(side["ci95"] or [])] if value is not None
        ]
        low, high = min(0.0, *ends), max([*ends, 1e-9])
        high = 1.0 if low >= 0 and high <= 1 else high
        lines.append({
            "name": name, "meaning": NAMES.get(name, ""), "base": base, "tuned": tuned, "difference": change,
            "verdict": metrics["verdict"].get(name), "scale": (low, high),
        })  # fmt: skip
    return lines


def _verdict(metrics: dict[str, Any]) -> dict[str, list[str]]:
    """The measures that got better, worse, or cannot be told."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name, verdict in metrics["verdict"].items():
        if verdict in found:
            found[verdict].append(name)
    return found


def _answers(file: Path) -> Iterator[dict[str, Any]]:
    """Each row with its answers, and where they differ from the wanted one."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            said = {name: row[name].get("answer") for name in ("base", "tuned")}
            right = {name: text is not None and text.strip() == row["wanted"].strip() for name, text in said.items()}
            if number < ROWS:
                wanted = row["wanted"][:CHARACTERS]
                row["spans"] = {name: text_diff.spans(wanted, (text or "")[:CHARACTERS]) for name, text in said.items()}
            row["right"] = right
            row["kind"] = (
                ("both" if right["base"] else "gained") if right["tuned"] else ("lost" if right["base"] else "neither")
            )
            row["number"] = number
            yield row


def _curve(file: Path) -> dict[str, Any] | None:
    """The losses as points of an SVG of 720 × 240."""
    logs = jsonl_log.read(file)
    series = {
        key: [(log["step"], log[key]) for log in logs if key in log and "step" in log] for key in ("loss", "eval_loss")
    }
    values = [value for points in series.values() for _, value in points]
    last = max((step for points in series.values() for step, _ in points), default=0)
    if not values or not last:
        return None
    top = max(values)

    def place(step: float, value: float) -> str:
        return f"{50 + 650 * step / last:.1f},{210 - 190 * value / top:.1f}"

    lines = {key: " ".join(place(*point) for point in points) for key, points in series.items() if points}
    ends = {key: points[-1][1] for key, points in series.items() if points}
    ticks = [(210 - 190 * part, top * part) for part in (0, 0.25, 0.5, 0.75, 1)]
    return {"lines": lines, "ends": ends, "ticks": ticks, "last": last}


def _command(stages: dict[str, Any]) -> list[str]:
    """The commands of the stages, as they were given."""
    found = []
    for record in stages.values():
        words = [paths.label(Path(record.argv[0]).resolve()) if record.argv else "", *record.argv[1:]]
        found.append("python " + " ".join(words))
    return found
