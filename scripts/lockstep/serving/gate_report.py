"""gate_report.json: what the gate found, kept beside the server's log."""

from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.errors import UserError


def summary(report: dict[str, Any]) -> str:
    """A report that passed, in one line."""
    parts = [f"{report['prompts']} golden prompts are the tokens of training"]
    if report.get("modules_active") is not None:
        parts.append(f"all {report['modules_active']} modules of the adapter are in effect")
    if report.get("kl") is not None:
        parts.append(f"{report['kl']:.4f} nats a token from the trained model (KL, bound {report['kl_bound']:.4f})")
    elif report["logprob_gap"] is not None:  # of an earlier version
        parts.append(f"log-probabilities within {report['logprob_gap']:.4f} nats a token of the trained model's")
    if report["adapter_effect"] is not None:
        parts.append(f"effect of the training {report['adapter_effect']:.2f} of 1")
    if report["stop_rate"] is not None:
        parts.append(f"{report['stop_rate']:.0%} of answers end by themselves")
    return ", ".join(parts)


def outcome(folder: Path) -> str:
    """What to tell of a server that passed: `summary` of its report, and where that lies."""
    report = read(folder)
    where = paths.label(folder / filenames.GATE_REPORT)
    return f"in lockstep: {summary(report)} ({where})" if report else f"in lockstep; {where} is gone, or damaged"


def read(folder: Path) -> dict[str, Any] | None:
    """The report that lies in a server's folder; None where there is none, or a damaged one."""
    try:
        report = atomic.read_json(folder / filenames.GATE_REPORT)
    except (OSError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def replaced(served: dict[str, str]) -> list[str]:
    """Labels of folders that were made anew since they were served.

    Args:
        served: label → digest, as a report and the supervisor's note hold it.
    """
    labels = []
    for label, digest in served.items():
        try:
            same = manifest.read(paths.resolve_label(label)).digest == digest
        except UserError:
            same = False
        labels += [] if same else [label]
    return labels


def write(folder: Path, report: dict[str, Any]) -> str:
    """Put the report beside the server's log; returns its label."""
    atomic.write_json(folder / filenames.GATE_REPORT, report)
    return paths.label(folder / filenames.GATE_REPORT)
