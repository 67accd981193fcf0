"""Whether a training's learning rate ever reaches the value that was asked for."""

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

MOST = 10_000  # steps at which a schedule is looked at
ENOUGH = 0.99  # of the peak: a long warmup is cut by a step where it ends with the training


class PeakCheck(TrainerCallback):  # type: ignore[misc]
    """Says at the start of a training that its schedule never reaches the peak, as where the warmup is too long."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        if (note := peak_note(lr_scheduler, state.max_steps)) and state.global_step == 0:
            self.say(
                f"note: {note}: its warmup has {args.get_warmup_steps(state.max_steps)} steps (--train.warmup_steps)"
            )


def peak_note(scheduler: Any, steps: int) -> str | None:
    """What a person should know of a schedule that stays below its peak; None where it does not.

    Args:
        scheduler: of torch; only those are looked at whose factor depends on the step alone.
        steps: of the whole training.
    """
    if not isinstance(scheduler, LambdaLR) or steps < 1:
        return None
    places = range(steps) if steps <= MOST else [step * (steps - 1) // MOST for step in range(MOST + 1)]
    highest = max(max(float(factor(step)) for step in places) for factor in scheduler.lr_lambdas)
    if highest >= ENOUGH:
        return None
    return f"the learning rate never gets above {highest:.0%} of its peak in {steps} steps"
