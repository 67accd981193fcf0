"""What to do after an evaluation: advice drawn from its figures, each with the command that follows it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.evaluation import answer_kinds, headline
from lockstep.text.language import phrase

Make = Callable[..., str]  # (goal, *words of ARGS) → a command to paste
ENDING = 0.95  # share of answers that should end by themselves
LOOPING = 0.05  # share of answers that repeat themselves, from which that is why they do not end
OVERFITTED = 1.02  # times the lowest held-out loss
STILL_LEARNING = 0.99  # times the held-out loss before, below which training was stopped early
TOO_MANY = 5_000  # test rows: a difference that needs more of them hardly matters
LARGEST_SHARE = 0.4  # of the rows to hold out for the test


@dataclass(frozen=True)
class Facts:
    """What is known of the run beside its metrics.

    Attributes:
        run: its name.
        learning_rate, epochs: of the training; None where the adapter was trained elsewhere.
        held_out_losses: of each evaluation while it trained, in order.
        test_files: that the test rows come from; empty where they are a share of the training file.
        test_share: that share.
        sheet: the label of sheet.csv.
    """

    run: str
    learning_rate: float | None
    epochs: float | None
    held_out_losses: Sequence[float]
    test_files: Sequence[str]
    test_share: float
    sheet: str


@dataclass(frozen=True)
class Step:
    """One piece of advice, and the commands to paste, one a line."""

    text: str
    commands: tuple[str, ...]


def steps(metrics: Mapping[str, Any], facts: Facts, make: Make) -> list[Step]:
    """Advice, what is wrong first."""
    outcome = headline.outcome(headline.lines(metrics))
    result = [*_faults(metrics, make)]
    if outcome in ("worse", "mixed"):
        result.append(_worse(facts, make))
    result += [*_endings(metrics, make), *_forgetting(metrics, facts, make)]
    if outcome == "undecided":
        result.append(_undecided(metrics, facts, make))
    if metrics["answers"]["kind"] in (answer_kinds.TEXT, answer_kinds.MIXED) and not metrics["people"]:
        text = phrase(
            "Judge a few answers yourself: write yes or no into the column accept of {sheet}, then", sheet=facts.sheet
        )
        result.append(Step(text, (make("report"),)))
    if outcome == "better":
        text = phrase("Serve the tuned model, and talk to it in a browser from a second terminal:")
        result.append(Step(text, (make("serve"), make("chat"))))
    return result


def _faults(metrics: Mapping[str, Any], make: Make) -> Iterator[Step]:
    """Figures that cannot be trusted: rows without answers, and test rows that were trained on."""
    if missing := sum(metrics["errors"].get(side, 0) for side in ("base", "tuned")):
        text = phrase("{rows} answers are missing and count as empty: ask for all of them again.", rows=missing)
        yield Step(text, (make("evaluate", "--force"),))
    overlap = metrics["overlap"]
    near = overlap["near_pairs"]["rows"]
    if leaked := overlap["leaked"]:
        text = phrase(
            "The prompts of {rows} test rows stand in the training rows, too, so these measure memory: take them out "
            "of one of the two files, and make everything again.",
            rows=leaked,
        )
        yield Step(text, (make("data", "--force"), make("train", "--force"), make("evaluate", "--force")))
    elif near * 20 > metrics["rows"]:  # more than 5 %
        text = phrase("{rows} test rows are almost the same as training rows: leave near duplicates out.", rows=near)
        yield Step(text, (make("data", "--data.drop", "garbled,duplicate,in_two_splits,near_duplicate", "--force"),))


def _endings(metrics: Mapping[str, Any], make: Make) -> Iterator[Step]:
    tuned = metrics["tuned"]
    stop_rate = tuned.get("stop_rate", {}).get("value")
    if stop_rate is None or stop_rate >= ENDING:
        return
    cut = round(100 * (1 - stop_rate))
    if (tuned["loop_rate"]["value"] or 0) >= LOOPING:
        text = phrase(
            "{share} % of the tuned answers do not end, and many repeat themselves. More or cleaner rows help, and a "
            "repetition penalty when sampling; this compares ways of sampling:",
            share=cut,
        )
        yield Step(text, (make("evaluate", "--evaluate.sampling_rows", str(min(20, metrics["rows"])), "--force"),))
        return
    longest = metrics.get("asked", {}).get("max_tokens", 512)
    text = phrase(
        "{share} % of the tuned answers were cut off at {tokens} tokens: see whether they end later.",
        share=cut,
        tokens=longest,
    )
    yield Step(text, (make("evaluate", "--evaluate.max_tokens", str(2 * longest), "--force"),))


def _forgetting(metrics: Mapping[str, Any], facts: Facts, make: Make) -> Iterator[Step]:
    if "worse" not in metrics["forgetting"]["verdict"].values():
        return
    text = phrase(
        "It forgot something. If that matters, mix general questions and answers into the training rows, about one in "
        "ten, or train more gently:"
    )
    yield Step(text, (_trained_again(facts, make, "gentle", *_gentler(facts)),))


def _worse(facts: Facts, make: Make) -> Step:
    losses = facts.held_out_losses
    if losses and losses[-1] > min(losses) * OVERFITTED:
        text = phrase(
            "The held-out loss was lowest at evaluation {number} of {count} and rose afterwards: training went on for "
            "too long. Keep the best weights:",
            number=losses.index(min(losses)) + 1,
            count=len(losses),
        )
        return Step(text, (_trained_again(facts, make, "best", "--train.load_best_model_at_end", "true"),))
    text = phrase("Training made something worse: look at the answers below, and try a lower learning rate:")
    return Step(text, (_trained_again(facts, make, "gentle", *_gentler(facts)),))


def _undecided(metrics: Mapping[str, Any], facts: Facts, make: Make) -> Step:
    rows = metrics["rows"]
    differences = [
        metrics["difference"][line.name] for line in headline.lines(metrics) if line.name in metrics["verdict"]
    ]
    needed = min((difference["rows_needed"] for difference in differences if difference["rows_needed"]), default=None)
    losses = facts.held_out_losses
    if len(losses) > 1 and losses[-1] == min(losses) < STILL_LEARNING * losses[-2] and facts.epochs:
        text = phrase("The held-out loss was still falling at the end: train for longer.")
        return Step(text, (_trained_again(facts, make, "longer", "--train.num_train_epochs", f"{2 * facts.epochs:g}"),))
    if needed is None or needed > TOO_MANY:
        text = phrase("Base and tuned are as good as equal: train for longer, or on more rows.")
        epochs = ("--train.num_train_epochs", f"{2 * facts.epochs:g}") if facts.epochs else ()
        return Step(text, (_trained_again(facts, make, "longer", *epochs),))
    if metrics.get("asked", {}).get("rows"):
        text = phrase(
            "About {needed} test rows would decide, and only {rows} were asked: ask all.", needed=needed, rows=rows
        )
        return Step(text, (make("evaluate", "--evaluate.rows", "null", "--force"),))
    if facts.test_files:
        text = phrase(
            "About {needed} test rows would decide, and there are {rows}: add more to {files}, and run",
            needed=needed, rows=rows, files=phrase(", ").join(facts.test_files),
        )  # fmt: skip
        return Step(text, (_trained_again(facts, make, "more"),))
    share = facts.test_share * needed / max(1, rows)
    if share > LARGEST_SHARE:
        text = phrase(
            "About {needed} test rows would decide, and there are {rows}: collect more rows, and run",
            needed=needed,
            rows=rows,
        )
        return Step(text, (_trained_again(facts, make, "more"),))
    text = phrase(
        "About {needed} test rows would decide, and there are {rows}: hold out more of them.", needed=needed, rows=rows
    )
    return Step(text, (_trained_again(facts, make, "more", "--data.test_share", f"{share:.2g}"),))


def _gentler(facts: Facts) -> list[str]:
    """Half the learning rate, and fewer epochs where there were several."""
    words = ["--train.learning_rate", f"{facts.learning_rate / 2:g}"] if facts.learning_rate else []
    return words + (["--train.num_train_epochs", f"{facts.epochs / 2:g}"] if facts.epochs and facts.epochs >= 2 else [])


def _trained_again(facts: Facts, make: Make, suffix: str, *words: str) -> str:
    """All stages in a run of its own, to be compared with this one."""
    return make("evaluate", "--run", f"{facts.run}-{suffix}", *words)
