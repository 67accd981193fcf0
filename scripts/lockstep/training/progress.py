"""What a training shows: a progress bar or lines, metrics.jsonl, answers at each evaluation, TensorBoard."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from lockstep.artifacts import filenames, jsonl_log
from lockstep.processes import busy
from lockstep.text.unicode import drop_controls

FILES = (filenames.TRAINING_LOG, filenames.SAMPLES)
SHOWN = ("loss", "eval_loss", "learning_rate", "rows_in_a_pass")


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Reports loss, tokens/s and the time left.

    Args:
        run_dir: where metrics.jsonl and samples.jsonl grow.
        say: prints a line where there is no terminal for a bar.
        answer: the model's answers to a few held-out prompts, as records for samples.jsonl.
        chief: whether this process is the one that reports.
    """

    def __init__(
        self, run_dir: Path, say: Callable[[str], None], answer: Callable[[], list[dict[str, Any]]], chief: bool
    ) -> None:
        self.run_dir, self.say, self.answer, self.chief = run_dir, say, answer, chief
        self.started, self.first = time.monotonic(), 0
        self.bar = tqdm(disable=True)  # where only an evaluation is left to do

    def watch(self, trainer: Any) -> None:
        """Set the trainer whose tokens are counted; all processes of a training have about equally many."""
        self.trainer, self.processes = trainer, trainer.accelerator.num_processes

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first = time.monotonic(), state.global_step
        hidden = None if self.chief else True  # None: shown where there is a terminal
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit=f" {busy.unit_name('steps')}", disable=hidden
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update()
        control.should_log |= state.global_step == state.max_steps  # the last steps, too, have a line

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        if not self.chief or "train_runtime" in logs:  # Trainer's own summary, of what this call trained
            return
        seconds = time.monotonic() - self.started
        so_far = self.trainer.seconds()  # also before it was resumed, as its tokens
        speed = self.processes * self.trainer.tokens / so_far
        jsonl_log.append(
            self.run_dir / filenames.TRAINING_LOG,
            {"step": state.global_step, **logs, "tokens_per_second": round(speed, 1), "seconds": round(so_far, 1)},
        )
        shown = [f"{key} {float(logs[key]):.4g}" for key in SHOWN if key in logs]
        text = "  ".join([*shown, f"{speed:.0f} tokens/s"])
        self.bar.set_postfix_str(text)
        if self.bar.disable and shown:
            done = max(1, state.global_step - self.first)
            left = (state.max_steps - state.global_step) * seconds / done
            self.say(f"step {state.global_step}/{state.max_steps}  {text}  {_clock(left)} left")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        records = self.answer()
        for record in records if self.chief else []:
            jsonl_log.append(self.run_dir / filenames.SAMPLES, {"step": state.global_step, **record})
            self.bar.clear()
            self.say(f"  {_end(record['prompt'])} → {_short(record['answer'])}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def forget(run_dir: Path) -> None:
    """Remove what an earlier training of the run has shown."""
    for name in FILES:
        (run_dir / name).unlink(missing_ok=True)
    shutil.rmtree(run_dir / filenames.TENSORBOARD, ignore_errors=True)


def forget_after(run_dir: Path, step: int) -> None:
    """Remove records of steps after this one, which will be computed again."""
    for name in FILES:
        jsonl_log.forget_after(run_dir / name, step)


def spent(run_dir: Path, step: int) -> tuple[float, int]:
    """(seconds, tokens) that the training took up to a step, by its log: what came after the last line is estimated."""
    lines = jsonl_log.read(run_dir / filenames.TRAINING_LOG)
    timed = [record for record in lines if record.get("seconds") and 0 < record["step"] <= step]
    if not timed:  # of an earlier version, or removed
        return 0.0, 0
    seconds = timed[-1]["seconds"] * step / timed[-1]["step"]
    return seconds, round(timed[-1]["tokens_per_second"] * seconds)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _short(text: str) -> str:
    line = _line(text)
    return line if len(line) <= 60 else line[:59] + "…"


def _end(text: str) -> str:
    """A prompt's end, where the question is; many begin with the same system prompt."""
    line = _line(text)
    return line if len(line) <= 60 else "…" + line[-59:]


def _line(text: str) -> str:
    """The text in one line, without characters that control the terminal."""
    return drop_controls(" ".join(text.split()))
