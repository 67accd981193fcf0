"""transformers' Trainer with a loss that is exact: a sum over supervised tokens, divided once."""

import math
from typing import Any

import torch
from pyarrow import compute
from transformers import Trainer

from lockstep import models
from lockstep.batches import WindowSampler
from lockstep.errors import UserError


class SupervisedTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """Loss per supervised token over the whole accumulation window, in training and evaluation.

    Attributes:
        tokens: how many tokens, padding apart, this process has trained on.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the window's token count
        self.tokens = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> WindowSampler:
        """Trainer's hook for the order of rows."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        window = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        lengths = compute.list_value_length(rows.data.column("input_ids")).to_pylist()
        return WindowSampler(lengths, window, self.args.seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One forward pass's share of the window's mean loss. Raises UserError if it is not finite."""
        total, count = models.loss_sum(model, inputs)
        mask = inputs.get("attention_mask")  # rows laid end to end have none, nor padding
        self.tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        self._require_finite(loss.item())
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss per supervised token, in nats; Trainer's own is a mean of batches' means."""
        self.model.eval()
        total_loss, tokens = 0.0, 0
        for batch in self.get_eval_dataloader(eval_dataset):
            with torch.no_grad(), self.compute_loss_context_manager():
                total, count = models.loss_sum(self.model, self._prepare_inputs(batch))
            total_loss, tokens = total_loss + total.item(), tokens + count
        loss = total_loss / tokens
        self._require_finite(loss)
        metrics = {
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_perplexity": math.exp(min(loss, 700)),  # e^709 is the largest float
        }
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.state.global_step}: lower --train.learning_rate or set "
                f"--train.dtype float32, and start afresh with --force"
            )
