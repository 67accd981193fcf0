"""A model's log-probabilities of next tokens, at the places where rows carry loss."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lockstep.data.collator import IGNORE
from lockstep.processes import busy
from lockstep.training import loss

TOP = 20  # likeliest tokens that are put on record, as many as vLLM gives
DIGITS = 6
LEFT = 1e-6  # probability below which what is left is rounding of what is on record

Batch = dict[str, Tensor]


def log_probs(
    network: nn.Module, batches: Sequence[Batch], dtype: torch.dtype, what: str = "log-probabilities"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch: float32 log-probabilities [positions, vocabulary] at supervised positions, and their targets.

    Args:
        dtype: of the matrix products; training computed so.
        what: the bar's name.
    """
    network.eval()
    device = next(network.parameters()).device
    for batch in busy.steps(batches, what, unit="batches"):
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits, targets = loss.supervised_logits(network, {name: part.to(device) for name, part in batch.items()})
            yield torch.log_softmax(logits, dim=-1).cpu(), targets.cpu()


def of_rows(
    network: nn.Module, batches: Sequence[Batch], dtype: torch.dtype, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same row by row."""
    for batch, (at_positions, targets) in zip(batches, log_probs(network, batches, dtype, what), strict=True):
        counts = (batch["labels"][:, 1:] != IGNORE).sum(1).tolist()
        yield from zip(torch.split(at_positions, counts), torch.split(targets, counts), strict=True)


def partition_kl(recorded: Tensor, measured: Tensor) -> Tensor:
    """KL(recorded ‖ measured) [n], in nats, over some tokens and all others as one more: a lower bound of the whole.

    Args:
        recorded, measured: log-probabilities [n, tokens] of the same tokens.
    """
    ours, theirs = recorded.double(), measured.double()
    left, left_measured = (1 - part.exp().sum(-1) for part in (ours, theirs))
    of_tokens = (ours.exp() * (ours - theirs)).sum(-1)
    of_others = left * (left / left_measured.clamp_min(LEFT)).clamp_min(LEFT).log()
    return (of_tokens + of_others.where(left > LEFT, 0)).clamp_min(0)


def rounded(values: Tensor) -> list[float]:
    """Values as reference.json holds them."""
    return [round(value, DIGITS) for value in values.tolist()]
