"""A schedule that never reaches its peak is said; one that does is not."""

from typing import Any

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from lockstep.training import schedule


def scheduler(kind: str, warmup: int, steps: int, **options: Any) -> Any:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return get_scheduler(kind, optimizer, warmup, steps, scheduler_specific_kwargs=options)


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "inverse_sqrt", "constant_with_warmup"])
@pytest.mark.parametrize(
    ("warmup", "steps", "share"), [(20, 12, "55%"), (12, 12, "92%"), (1, 1, "0%"), (10**6, 10**5, "10%")]
)
def test_a_warmup_that_outlasts_the_training_is_said(kind: str, warmup: int, steps: int, share: str) -> None:
    note = schedule.peak_note(scheduler(kind, warmup, steps), steps)
    assert note == f"the learning rate never gets above {share} of its peak in {steps} steps"


@pytest.mark.parametrize(("kind", "warmup", "steps"), [
    ("linear", 0, 1), ("linear", 3, 12), ("cosine", 11, 12), ("constant", 20, 12), ("polynomial", 300, 10**5), ("reduce_lr_on_plateau", 0, 5),
])  # fmt: skip
def test_a_schedule_that_reaches_its_peak_is_not(kind: str, warmup: int, steps: int) -> None:
    assert schedule.peak_note(scheduler(kind, warmup, steps), steps) is None


def test_it_is_said_at_the_start_and_not_again_after_resuming(tmp_path: Any) -> None:
    from transformers import TrainerState

    lines: list[str] = []
    args = TrainingArguments(output_dir=str(tmp_path), warmup_steps=20, report_to="none", use_cpu=True)
    check = schedule.PeakCheck(lines.append)
    for step in (0, 5):
        state = TrainerState(max_steps=12, global_step=step)
        check.on_train_begin(args, state, None, lr_scheduler=scheduler("linear", 20, 12))
    (line,) = lines
    assert "55%" in line and "20 steps (--train.warmup_steps)" in line
