"""What an evaluation says in short, for the top of the report and for the terminal: in words, in the reader's language.

Works on eval/metrics.json alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lockstep.evaluation import answer_kinds, catalogue
from lockstep.text.language import phrase

Metrics = Mapping[str, Any]
FEW = 50  # rows of a panel, below which it can hardly decide anything
PICTOGRAM = {"better": "▲", "worse": "▼", "undecided": "≈"}  # a verdict that does not depend on colours


@dataclass(frozen=True)
class Line:
    """A measure of both models in words.

    Attributes:
        name: in metrics.json.
        base, tuned: the values as text.
        verdict: better, worse or undecided; None where no direction is better.
        note: what there is to say of it, such as how many rows would decide; may be empty.
    """

    name: str
    title: str
    meaning: str
    base: str
    tuned: str
    verdict: str | None
    note: str = ""


def value_text(name: str, value: float | None) -> str:
    """A value as people say it: shares in percent, others with three digits that matter."""
    if value is None:
        return "–"
    entry = catalogue.CATALOGUE.get(name)
    if entry and entry.bounds == catalogue.UNIT:
        return f"{100 * value:.0f} %"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def lines(metrics: Metrics) -> list[Line]:
    """The measures that fit the kind of answers, the most important one first."""
    answers = metrics["answers"]
    chosen = []
    if checked := answers.get("checked"):
        rows = answers["rows"]["json"] + answers["rows"]["short"]
        note = phrase("of the {rows} answers that are short or JSON", rows=rows)
        chosen.append(_line("exact_match", checked, note))
    for name in answer_kinds.HEADLINE[answers["kind"]]:
        if metrics["base"].get(name, {}).get("value") is not None:
            chosen.append(_line(name, metrics, _rows_needed(metrics["difference"][name], metrics["verdict"].get(name))))
    return chosen


def _line(name: str, table: Metrics, note: str) -> Line:
    base, tuned = (value_text(name, table[side][name]["value"]) for side in ("base", "tuned"))
    entry = catalogue.CATALOGUE[name]
    return Line(name, phrase(entry.title), phrase(entry.meaning), base, tuned, table["verdict"].get(name), note)


def _rows_needed(difference: Metrics, verdict: str | None) -> str:
    needed = difference.get("rows_needed")
    return phrase("about {rows} rows would decide", rows=needed) if verdict == "undecided" and needed else ""


def outcome(chosen: list[Line]) -> str:
    """better, worse, mixed or undecided: what the headline's measures say together.

    That answers end makes none of them right, so this alone is not better.
    """
    verdicts = {line.verdict for line in chosen if line.name != "stop_rate" or line.verdict != "better"}
    if {"better", "worse"} <= verdicts:
        return "mixed"
    return "better" if "better" in verdicts else "worse" if "worse" in verdicts else "undecided"


def sentence(metrics: Metrics, chosen: list[Line]) -> str:
    """The answer to "did it get better?"."""
    forgot = "worse" in metrics["forgetting"]["verdict"].values()
    texts = {
        "better": phrase("Yes, it got better, but it forgot something.") if forgot else phrase("Yes, it got better."),
        "worse": phrase("No, it got worse."),
        "mixed": phrase("In part: better in one respect, worse in another."),
        "undecided": phrase("That is undecided: {rows} test rows show no clear difference.", rows=metrics["rows"]),
    }
    return texts[outcome(chosen)]


def kind(metrics: Metrics) -> str:
    """What kind of answers the test rows have, and why the headline is what it is."""
    answers = metrics["answers"]
    texts = {
        answer_kinds.TEXT: phrase(
            "The answers are free text, which has many right wordings: what counts is how likely the references are, "
            "whether answers end, how close they come, and what a person thinks of them."
        ),
        answer_kinds.JSON: phrase("The answers are JSON: what counts is whether their fields are right."),
        answer_kinds.LABELS: phrase("The answers are labels: what counts is whether they are right."),
        answer_kinds.SHORT: phrase("The answers are short: what counts is whether they are right."),
        answer_kinds.MIXED: phrase(
            "{text} of the answers are free text, and {other} are short or JSON and can be checked exactly.",
            text=answers["rows"]["text"],
            other=answers["rows"]["json"] + answers["rows"]["short"],
        ),
    }
    return texts[answers["kind"]]


def forgotten(metrics: Metrics) -> tuple[str, list[Line]]:
    """What was forgotten: a sentence, and the measures behind it."""
    table = metrics["forgetting"]
    names = [name for name in catalogue.FORGETTING if table["base"].get(name, {}).get("value") is not None]
    chosen = [_line(name, table, _of_panel(name, table)) for name in names]
    verdicts = {line.verdict for line in chosen}
    if not chosen:
        return phrase("What was forgotten is not known: neither questions nor texts were answered."), []
    if "worse" in verdicts:
        return phrase("It forgot something that has nothing to do with the training rows."), chosen
    if verdicts == {"undecided"}:
        return phrase("Whether it forgot anything is undecided; the questions and texts are few."), chosen
    return phrase("Nothing shows that it forgot anything."), chosen


def _of_panel(name: str, table: Metrics) -> str:
    """How many questions or texts there are, that they are few, and how many would decide."""
    rows = table.get("rows", {}).get(name)  # older files lack it
    if rows is None:
        return _rows_needed(table["difference"][name], table["verdict"].get(name))
    parts = [
        phrase("{rows} questions", rows=rows) if name == "general_questions" else phrase("{rows} texts", rows=rows)
    ]
    if table["verdict"].get(name) == "undecided":
        parts += [phrase("few")] if rows < FEW else []
        needed = table["difference"][name].get("rows_needed")
        parts += [phrase("about {rows} would decide", rows=needed)] if needed else []
    return phrase("; ").join(parts)


def people(metrics: Metrics, sheet: str) -> str:
    """What a person thinks of the answers, or how to say it.

    Args:
        sheet: the label of sheet.csv.
    """
    judged = metrics["people"]
    if not judged:
        return phrase("No person has judged the answers yet: mark yes or no in {sheet}.", sheet=sheet)
    low, high = (round(100 * end) for end in judged["ci95"])
    return phrase(
        "A person accepted {accepted} of {rows} tuned answers ({share} %, 95 % interval {low} to {high} %).",
        accepted=judged["accepted"], rows=judged["rows"], share=round(100 * judged["value"]), low=low, high=high,
    )  # fmt: skip


def is_for_people(metrics: Metrics) -> bool:
    """Whether a person's judgement belongs in the headline."""
    return metrics["answers"]["kind"] in (answer_kinds.TEXT, answer_kinds.MIXED) or bool(metrics["people"])
