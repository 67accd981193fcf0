"""SIGTERM during training, as schedulers and spot instances send it: finish the step, save, exit 75."""

import signal
from typing import Any

from transformers import TrainerCallback

from lockstep.errors import Terminated


class Termination(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Turns SIGTERM into a checkpoint at the end of the step that is being computed.

    Outside of training, and at the second signal, the program ends at once: nothing that looks
    complete is left, and the last checkpoint stands.

    Attributes:
        asked: whether training stopped for a signal.
    """

    def __init__(self) -> None:
        self.asked = self.training = False
        self.reduce: Any = None  # of the accelerator, where several processes must agree on the step
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked or not self.training:
            raise Terminated("terminated")  # `checkpoints.telling_what_remains` adds the rest
        self.asked = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.reduce is not None:
            import torch

            self.asked = bool(self.reduce(torch.tensor(float(self.asked), device=args.device), "sum"))
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.training = False
