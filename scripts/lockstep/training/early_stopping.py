"""What the held-out loss decides while a training runs: when it ends early, and which weights are the best.

Both are read from Trainer's log alone, which every checkpoint holds: a resumed training decides the same.
"""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from lockstep.settings.schema import Train

Log = Sequence[dict[str, float]]


def losses(history: Log) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation."""
    return [(int(log["step"]), log["eval_loss"]) for log in history if "eval_loss" in log]


def best_step(history: Log) -> int | None:
    """The step of the lowest loss, the earliest of equal ones."""
    evaluated = losses(history)
    return min(evaluated, key=lambda pair: pair[1])[0] if evaluated else None


def is_stuck(history: Log, patience: int | None, threshold: float) -> bool:
    """Whether none of the last `patience` evaluations was better, by `threshold` nats, than the best before it."""
    best, waited = float("inf"), 0
    for _, value in losses(history):
        waited = 0 if value < best - threshold else waited + 1
        best = min(best, value) if waited == 0 else best
    return patience is not None and waited >= patience


class HeldOut(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Stops a training that gets no better, and has a checkpoint of the best weights written."""

    def __init__(self, train: Train) -> None:
        self.train = train

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        train = self.train
        if is_stuck(state.log_history, train.early_stopping_patience, train.early_stopping_threshold):
            control.should_training_stop = control.should_save = True
        if train.load_best_model_at_end and best_step(state.log_history) == state.global_step:
            control.should_save = True
