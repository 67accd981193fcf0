"""The gate: before anyone else is let in, the live server proves that it serves the model that was trained.

1. It tokenizes the golden conversations of the contract, and the messages of held-out rows, to the ids that training
   rendered, and all ids of the vocabulary become the texts of training and these the same ids again.
2. Every stop token of the contract ends an answer, and none of the tokens that answers consist of does.
3. Its distributions are those that training put on record, on held-out rows, on tokens from all over the vocabulary,
   over its whole length and asked by messages, and nearer to the trained model than to the base.
4. So are those of the end-of-turn token after whole answers.
5. Every module of the adapter, where it serves one, lies in the buffers that its answers are computed with.

Then it answers held-out prompts by itself: the share of answers that end is a warning, or a bound if one is set.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic, filenames
from lockstep.serving import gate_bounds, gate_log_probs, gate_modules, gate_protocols, gate_tokens, gate_vocabulary
from lockstep.serving.gate_bounds import Bounds
from lockstep.serving.gate_findings import Findings, Tell
from lockstep.serving.probe import Server

ANSWERS = 16  # held-out prompts that are answered
LONGEST_ANSWER = 256  # tokens
FEW_STOPS = 0.8  # a stop rate below this is worth a warning


@dataclass(frozen=True)
class Claim:
    """What a server is said to serve, and what it is held to.

    Args:
        mode: merged, lora or base.
        folders: name that clients send → (folder with the template that is served, the adapter's folder with
            contract and reference); the first name is the run's own.
        base_name: the name of the base beneath the adapters; None where none is served.
        bounds: within which the served model is the trained one.
    """

    mode: str
    folders: dict[str, tuple[Path, Path]]
    base_name: str | None
    bounds: Bounds


def prove(server: Server, claim: Claim, tell: Tell = lambda step, detail: None) -> dict[str, Any]:
    """Put all questions to the server.

    Args:
        tell: is told which proof is in progress, and how far.

    Returns:
        the content of gate_report.json; `passed` is the outcome.

    Raises:
        Unanswered: the server fails on a question.
    """
    findings = {name: _findings(server, claim, name, _of_model(name, claim, tell)) for name in claim.folders}
    first, *others = findings
    report = {"mode": claim.mode, "model": first, **findings[first].report}
    if others:
        report["others"] = {name: findings[name].report for name in others}
    reasons, warnings = [], []
    named = next((about.named for about in findings.values() if about.named), None)
    for name, about in findings.items():
        prefix = f"{name}: " if others else ""
        reasons += [f"{prefix}{reason}" for reason in about.reasons]
        warnings += [f"{prefix}{warning}" for warning in about.warnings]
    return report | {"reasons": reasons, "named": named, "warnings": warnings, "passed": not reasons}


def foresee(claim: Claim) -> dict[str, Any] | None:
    """Why the gate would stay shut, as far as files say it: a minute before a server could.

    Returns:
        fields of the report, or None where proofs 1 and 2 have to be put to the server.
    """
    for folder, adapter in claim.folders.values():
        report = gate_tokens.foresee(folder, adapter)
        if claim.mode != "base" and (reason := gate_modules.foresee(adapter)):
            report |= {"reasons": [reason, *report["reasons"]], "named": "partial"}
        if report["reasons"]:
            return report
    return None


def _of_model(name: str, claim: Claim, tell: Tell) -> Tell:
    """`tell`, with the name of the model where there are several."""
    return tell if len(claim.folders) == 1 else lambda step, detail: tell(f"{name}, {step}", detail)


def _findings(server: Server, claim: Claim, name: str, tell: Tell) -> Findings:
    """What all proofs find about one served name."""
    folder, adapter = claim.folders[name]
    bounds, is_base = claim.bounds, claim.mode == "base"
    agreed = atomic.read_json(adapter / filenames.CONTRACT)
    recorded = atomic.read_json(adapter / filenames.REFERENCE)
    findings = Findings(tell=tell)
    gate_tokens.check_prompts(server, name, folder, agreed, findings)
    of_training = gate_tokens.template_of(adapter)
    gate_tokens.check_row_prompts(server, name, of_training, recorded["rows"], findings)
    gate_vocabulary.check(server, name, of_training, bounds.vocabulary, findings)
    gate_protocols.check(server, name, agreed, bounds.max_model_len, findings)
    has_other_prompts = bool(findings.reasons)
    if claim.mode == "lora":
        gate_modules.check(server, name, adapter, findings)
    else:
        findings.report |= dict.fromkeys(gate_modules.FIELDS)
    if has_other_prompts:  # than in training: nothing else can be compared
        return findings
    ordinary = gate_tokens.ordinary_tokens(folder, agreed, recorded["rows"], bounds.vocabulary)
    gate_tokens.check_stops(server, name, agreed, ordinary, findings)
    rows = [row for row in recorded["rows"] if len(row["input_ids"]) <= bounds.max_model_len]
    if is_base:
        findings.report |= dict.fromkeys(gate_log_probs.NOTHING)
    elif not rows:
        findings.refuse(
            "too_short", f"no held-out row fits into --serve.max_model_len {bounds.max_model_len}: raise it"
        )
    else:
        certified = gate_bounds.certified(adapter)
        gate_log_probs.check(server, name, claim.base_name, recorded, agreed, bounds, certified, findings)
    # how the base ends its answers is no fault of a training
    _check_answers(server, name, rows, replace(bounds, min_stop_rate=None) if is_base else bounds, findings)
    return findings


def _check_answers(server: Server, name: str, rows: list[Any], bounds: Bounds, findings: Findings) -> None:
    """The stop rate: the share of answers to held-out prompts that end by themselves."""

    def ends(row: dict[str, Any]) -> bool:
        prompt = row["input_ids"][: row["start"]]
        room = min(LONGEST_ANSWER, bounds.max_model_len - len(prompt))
        return bool(server.complete(name, prompt, max_tokens=room)["finish_reason"] == "stop")

    sample = rows[:: max(1, len(rows) // ANSWERS)][:ANSWERS]
    rate = sum(findings.ask_all("whole answers", ends, sample)) / len(sample) if sample else None
    findings.report |= {"stop_rate": rate, "answers": len(sample)}
    if rate is None:
        return
    finding = (
        f"{rate:.0%} of {len(sample)} answers to held-out prompts ended by themselves within {LONGEST_ANSWER} tokens"
    )
    if bounds.min_stop_rate is not None and rate < bounds.min_stop_rate:
        findings.refuse("few_stops", f"{finding}, and --serve.min_stop_rate is {bounds.min_stop_rate:.0%}")
    elif rate < FEW_STOPS:
        findings.warnings.append(f"only {finding}")
