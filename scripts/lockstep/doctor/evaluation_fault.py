"""Fault 10: trained, and never measured on rows that were held out, before and after."""

import ast
import re
from collections.abc import Iterator

from lockstep.doctor.findings import Finding
from lockstep.doctor.project import TRAINERS, Project, fault
from lockstep.doctor.script_tree import Script, dotted, is_true, keyword, last_name

MEASURES = re.compile(
    r"(^|_)(evaluate|eval|perplexity|exact_match|accuracy|score|benchmark|rouge|bleu)\w*$", re.IGNORECASE
)
CURE = (
    "keep rows apart and measure base and tuned model on them: trainer.evaluate() before and after train(); "
    "`make evaluate`"
)


def never_measured(project: Project) -> Iterator[Finding]:
    """A training without held-out rows, or with rows that nothing measures before and after."""
    for script in project.scripts:
        trainings = [call for call in script.calls if _trains(script, call)]
        if not trainings:
            yield from _loop(script)
            continue
        held_out = any(
            keyword(call, "eval_dataset") is not None or any(k.arg is None for k in call.keywords)
            for call in script.calls
            if last_name(call) in TRAINERS
        ) or _measures_by_hand(script, trainings)
        before, after = _measured(script, trainings, project)
        if held_out and before and after:
            continue
        missing = "no rows are held out" if not held_out else (
            "held-out rows are never measured before the training" if not before
            else "held-out rows are never measured after the training"
        )  # fmt: skip
        yield fault(
            10,
            f"{missing}: nothing tells whether the tuned model is better than its base",
            CURE,
            script,
            *trainings,
        )


def _loop(script: Script) -> Iterator[Finding]:
    """A training loop written by hand, in which nothing is ever measured."""
    names = {last_name(call) for call in script.calls}
    backward = [call for call in script.calls if dotted(call.func).endswith("loss.backward")]
    learns = backward and "step" in names and "zero_grad" in names and "from_pretrained" in names
    if learns and not any(name == "eval" or MEASURES.search(name) for name in names):
        yield fault(
            10,
            "no rows are held out: nothing tells whether the tuned model is better than its base",
            CURE,
            script,
            *backward,
        )


def _trains(script: Script, call: ast.Call) -> bool:
    """Whether a call is `trainer.train()`, and not `model.train()`, which only changes a mode."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "train":
        return False
    holder = call.func.value
    if isinstance(holder, ast.Call):
        return last_name(holder) in TRAINERS
    name = dotted(holder)
    values = [value for scope in script.functions for value in script.assigned(scope).get(name, [])]
    is_trainer = any(isinstance(value, ast.Call) and last_name(value) in TRAINERS for value in values)
    return is_trainer or (not values and bool(re.search(r"trainer$", name)))


def _measures_by_hand(script: Script, trainings: list[ast.Call]) -> bool:
    """Whether functions of the script's own measure something before and after the training."""
    names = {scope.name for scope in script.functions if not isinstance(scope, ast.Module)}
    lines = [call.lineno for call in script.calls if last_name(call) in names and MEASURES.search(last_name(call))]
    return any(line < trainings[0].lineno for line in lines) and any(line > trainings[-1].lineno for line in lines)


def _measured(script: Script, trainings: list[ast.Call], project: Project) -> tuple[bool, bool]:
    """Whether held-out rows are measured before the first training, and after the last one."""
    before = after = False
    for call in script.calls:
        if MEASURES.search(last_name(call)) and last_name(call) != "eval":
            before = before or call.lineno < trainings[0].lineno
            after = after or call.lineno > trainings[-1].lineno
        if last_name(call) in ("TrainingArguments", "SFTConfig", "Seq2SeqTrainingArguments"):
            before = before or is_true(keyword(call, "eval_on_start"))
            strategy = keyword(call, "eval_strategy") or keyword(call, "evaluation_strategy")
            after = after or (isinstance(strategy, ast.Constant) and strategy.value in ("steps", "epoch"))
    if not before:  # base and tuned are compared in a script of their own
        others = [other for other in project.scripts if other is not script]
        before = any(
            re.search(r"PeftModel|base", str(other.unit.text)) and any(_compares(call) for call in other.calls)
            for other in others
        )
        after = after or before
    return before, after


def _compares(call: ast.Call) -> bool:
    return bool(re.search(r"^(evaluate|compare)\w*$", last_name(call)))
