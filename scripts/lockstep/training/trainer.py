"""transformers' Trainer with windows: one call per optimizer step, an exact loss, verified checkpoints."""

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError, disk_errors, is_out_of_memory
from lockstep.model import peft_adapter
from lockstep.processes import busy
from lockstep.settings.schema import Lora, Train
from lockstep.training import checkpoints, loss
from lockstep.training.batching import TokenRow, Window, WindowCollator, WindowLoader, WindowSampler
from lockstep.training.fast_lora import FastPass
from lockstep.training.parallel_passes import Lanes

EVALUATED_AT_ONCE = 64  # rows among which passes of like length are found


class SupervisedTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """Loss per supervised token over the whole window, in training and evaluation.

    Trainer sees one batch per step, the window. `training_step` cuts it into forward passes whose
    gradients add up to the window's.

    Args:
        train: the settings; `arguments` are transformers' own.
        collate: lays the rows of a window out; its `rows_in_a_pass` is for training.
        in_pieces: see `loss.loss_sum`.
        network: the transformers model, inside of the adapter where one is trained.
        fast: the adapters' fast pass, where there is one; a checkpoint says whether.

    Attributes:
        tokens: how many tokens, padding apart, this process has trained on, also before it was resumed.
        seconds_before: that the training took before it was resumed.
        losses: of this process's steps: their sum since the last log line, and of all.
        logged_at: the step of that line.
        rows_in_a_pass: falls where memory runs out and `auto_batch` is set.
    """

    def __init__(
        self,
        *,
        train: Train,
        lora: Lora,
        collate: WindowCollator,
        in_pieces: bool,
        network: Any,
        fast: FastPass | None,
        **named: Any,
    ) -> None:
        super().__init__(**named)
        self.settings, self.lora, self.collate, self.in_pieces, self.network = train, lora, collate, in_pieces, network
        self.rows_in_a_pass = collate.rows_in_a_pass
        self.lanes = Lanes(collate.lanes)
        self.fast = fast
        self.tokens, self.seconds_before = 0, 0.0
        self.started = time.monotonic()
        self.losses, self.logged_at = torch.zeros(2, dtype=torch.float64), 0

    # --- rows ---

    def get_train_dataloader(self) -> WindowLoader:
        """Windows in the order of seed and epoch; each process takes its share in the collator."""
        per_process = self.settings.per_device_train_batch_size * self.settings.gradient_accumulation_steps
        sampler = WindowSampler(len(self.train_dataset), per_process * self.collate.processes, self.args.seed)
        arguments = self.args
        with naming("what --train.training_args asks of the data loader"):
            return WindowLoader(
                self.train_dataset,
                batch_sampler=sampler,
                collate_fn=list,  # laid out in training_step, once more where memory runs out
                num_workers=arguments.dataloader_num_workers,
                persistent_workers=arguments.dataloader_persistent_workers,
                prefetch_factor=arguments.dataloader_prefetch_factor,
                multiprocessing_context=arguments.dataloader_multiprocessing_context,
            )

    def floating_point_ops(self, inputs: Any) -> int:
        """Trainer counts them for its log; nobody reads that here."""
        return 0

    # --- a step ---

    def training_step(self, model: Any, inputs: list[TokenRow], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over a window's rows. Returns their mean loss, in nats a supervised token.

        Raises:
            UserError: the loss is not finite, or nothing in the window carries loss; names the rows.
        """
        model.train()
        self.rows = inputs
        before = self._random_state()
        while True:
            window: Window = replace(self.collate, rows_in_a_pass=self.rows_in_a_pass)(inputs)
            supervised = int(self._sum_over_processes(torch.tensor(window.supervised, device=self.args.device)))
            if not supervised:
                raise UserError(f"no token carries loss in {_named(inputs)}: look at preview.html")
            try:
                shown = self._backward(model, window, supervised)
                self.tokens += window.tokens
                self.losses += shown.item()
                return shown
            except (RuntimeError, MemoryError) as error:
                if not (is_out_of_memory(error) and self._may_halve()):
                    raise
            self._halve()
            torch.set_rng_state(before[0])
            if before[1] is not None:
                torch.cuda.set_rng_state(before[1])
            model.zero_grad()

    def _backward(self, model: Any, window: Window, supervised: int) -> Tensor:
        part_of = partial(self._part, model, supervised)
        if len(window.lanes) > 1:
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            return self.lanes.backward(weights, window.lanes, part_of)
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(window.passes, start=1):
            last = number == len(window.passes)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                part = part_of(batch)
                # DDP and FSDP average the processes' gradients; the window's loss is their sum
                self.accelerator.backward(part * self.accelerator.num_processes)
            total += part.detach()
        shown: Tensor = total * self.accelerator.num_processes  # Trainer logs the mean over the processes
        return shown

    def _part(self, model: Any, supervised: int, batch: dict[str, Tensor]) -> Tensor:
        """A pass's part of the window's mean loss."""
        with self.compute_loss_context_manager():
            part, _ = loss.loss_sum(self.network, self._prepare_inputs(batch), self.in_pieces, outer=model)
        part = part / supervised
        self._require_finite(part.item())
        return part

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with a mean loss of our own: on resuming, Trainer forgets the steps since the last log line."""
        if "loss" in logs:
            logs["loss"] = self._mean_over_processes()[0] / (self.state.global_step - self.logged_at)
            self.losses[0], self.logged_at = 0.0, self.state.global_step
        super().log(logs, start_time)

    def mean_loss(self) -> float:
        """Of all steps."""
        return float(self._mean_over_processes()[1] / self.state.global_step)

    def _mean_over_processes(self) -> list[float]:
        processes = self.accelerator.num_processes
        sums = self.losses if processes == 1 else self._sum_over_processes(self.losses.float().to(self.args.device))
        return [value / processes for value in sums.tolist()]

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        return value if self.accelerator.num_processes == 1 else self.accelerator.reduce(value, "sum")

    def _may_halve(self) -> bool:
        # several processes would have to run out of memory at once
        return self.settings.auto_batch and self.rows_in_a_pass > 1 and self.accelerator.num_processes == 1

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        """Of the generators that masks come from: the CPU's, and the GPU's where one is used."""
        return torch.get_rng_state(), torch.cuda.get_rng_state() if self.args.device.type == "cuda" else None

    def _halve(self) -> None:
        """Smaller passes from now on; the window, and so the step, is the same."""
        self.rows_in_a_pass //= 2
        if self.fast:
            self.fast.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.log({"rows_in_a_pass": self.rows_in_a_pass})

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's hook between gradients and optimizer step. A norm that is not finite stops before the step."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None:  # float16's scaler skips such steps by itself, and lowers its scale
            self._require_finite(float(norm), "norm of the gradients")
        return norm

    def _require_finite(self, value: float, what: str = "loss") -> None:
        if not math.isfinite(value):
            raise UserError(
                f"the {what} is {value} at step {self.state.global_step + 1}, in {_named(self.rows)}: "
                f"that step changed nothing; look at those rows, lower --train.learning_rate or set "
                f"--train.dtype float32, and start afresh with --force"
            )

    # --- optimizer ---

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's, or LoRA+'s: the same one with a higher learning rate for B.

        Raises:
            UserError: the optimizer cannot be made.
        """
        self.optimizer: Any
        with naming(f"--train.optim {self.args.optim.value}"):
            if self.optimizer is not None or not self.lora.loraplus_lr_ratio:
                return super().create_optimizer(model)
            from peft.optimizers import create_loraplus_optimizer

            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model,
                kind,
                loraplus_lr_ratio=self.lora.loraplus_lr_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **options,
            )
            return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's. Raises UserError where it cannot be made."""
        with naming(f"--train.lr_scheduler_type {self.settings.lr_scheduler_type}"):
            return super().create_scheduler(num_training_steps, optimizer)

    # --- evaluation ---

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The compute dtype of training, outside of it."""
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(self.args.device.type, dtype, enabled=self.args.bf16 or self.args.fp16)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss per supervised token, in nats; Trainer's own is a mean of batches' means."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        collate = replace(self.collate, rows_in_a_pass=self.settings.per_device_eval_batch_size)
        total = torch.zeros(2, dtype=torch.float64)
        training = self.model.training
        self.model.eval()
        for start in busy.steps(range(0, len(rows), EVALUATED_AT_ONCE), "held-out loss", unit="chunks"):
            chunk = [rows[place] for place in range(start, min(start + EVALUATED_AT_ONCE, len(rows)))]
            for part in self.lanes.each(self._nats_and_tokens, collate(chunk).lanes):
                total += part
        self.model.train(training)
        nats, tokens = self._sum_over_processes(total.to(torch.float32).to(self.args.device)).tolist()
        value = nats / tokens
        if not math.isfinite(value):
            raise UserError(
                f"the loss on the held-out rows is {value} at step {self.state.global_step}: "
                f"lower --train.learning_rate, and start afresh with --force"
            )
        metrics = {
            f"{metric_key_prefix}_loss": value,
            f"{metric_key_prefix}_perplexity": perplexity(value),
        }
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _nats_and_tokens(self, passes: list[dict[str, Tensor]]) -> Tensor:
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), self.autocast():
            for batch in passes:
                part, count = loss.loss_sum(self.network, self._prepare_inputs(batch), self.in_pieces, outer=self.model)
                total += torch.tensor([part.item(), count], dtype=torch.float64)
        return total

    # --- checkpoints ---

    def gathered_state(self) -> dict[str, Tensor] | None:
        """The trained weights, in the first process, where none may hold them whole (FSDP, ZeRO); else None."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        state: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        return state

    def load_weights(self, checkpoint: Path) -> None:
        """Put a checkpoint's weights into the model. Raises UserError where it is gone or was changed."""
        if not checkpoints.verifies(checkpoint):
            raise UserError(f"{paths.label(checkpoint)} is gone, or is not what was saved: run again with --force")
        self._load_from_checkpoint(str(checkpoint), self.model_wrapped if self.is_fsdp_enabled else None)

    def _load_from_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Trainer's hook."""
        with peft_adapter.names_as_in_memory(self.model):
            super()._load_from_checkpoint(*arguments, **options)

    def recall(self, note: dict[str, Any]) -> None:
        """What a checkpoint's note says, beside what Trainer keeps itself."""
        self.rows_in_a_pass, self.logged_at = note["rows_in_a_pass"], note["logged_at"]
        self.losses = torch.tensor(note["losses"], dtype=torch.float64)

    def seconds(self) -> float:
        """That the training has taken so far, in all its pieces, loading apart."""
        return self.seconds_before + time.monotonic() - self.started

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's hook. Its files are written beside, sealed with their hashes, and then renamed, at once."""
        folder, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        partial = folder / checkpoints.PARTIAL
        first = self.is_world_process_zero()
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(partial)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # old ones go when the new one is whole
        try:
            with disk_errors():
                super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir, self.args.save_total_limit = str(folder), limit
        losses = self._mean_over_processes()  # all of them ask
        note = {
            "rows_in_a_pass": self.rows_in_a_pass,
            "fast": bool(self.fast and self.fast.layers),
            "losses": losses,
            "logged_at": self.logged_at,
            "threads": torch.get_num_threads(),
        }
        self.accelerator.wait_for_everyone()
        self.state.best_model_checkpoint = None  # Trainer's note of it names the folder that is about to go
        if first:
            self.state.save_to_json(str(partial / name / filenames.TRAINER_STATE))
            atomic.write_json(partial / name / checkpoints.NOTE, note)
            checkpoints.publish(partial / name, folder / name)
            checkpoints.prune(folder, limit, self.state.best_global_step)
        self.accelerator.wait_for_everyone()


@contextlib.contextmanager
def naming(setting: str) -> Iterator[None]:
    """Turn a library's refusal of a setting into a UserError that names the setting."""
    try:
        yield
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{setting} does not work: {' '.join(str(error).split())[:300]}") from error


def perplexity(nats: float) -> float:
    """Of a mean loss; e^709 is the largest float."""
    return math.exp(min(nats, 700))


def _named(rows: list[TokenRow]) -> str:
    names = [str(row.get("row", "?")) for row in rows]
    return "rows " + ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
