"""The loss that training minimises: summed over supervised tokens, computed nowhere else.

The output layer is the costliest of a small model, and prompts carry no loss. So it is given only the
hidden states that predict a supervised token, and on request only a few of those at a time, so that
all logits never exist at once.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.data.collator import IGNORE

LOGITS = {"cpu": 12 * 2**20, "cuda": 2**27, "mps": 2**25}  # how many exist at a time


@contextmanager
def _hidden_states_at(network: nn.Module, places: Tensor, give_all: bool) -> Iterator[list[Tensor]]:
    """Hand the output layer the hidden states at `places` [rows, length - 1], or none but collect them.

    In this thread alone: others may compute passes of their own at the same time.
    """
    collected: list[Tensor] = []
    mine = threading.get_ident()

    def select(_: nn.Module, hidden: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if threading.get_ident() != mine:
            return None
        chosen = hidden[0][:, :-1][places]
        collected.append(chosen)
        return (chosen if give_all else chosen[:0],)

    hook = network.get_output_embeddings().register_forward_pre_hook(select)  # type: ignore[operator]
    try:
        yield collected
    finally:
        hook.remove()


def supervised_logits(
    network: nn.Module, batch: Mapping[str, Tensor], outer: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and targets at supervised positions, and nowhere else.

    Args:
        batch: `input_ids`, `labels` and `attention_mask` or `position_ids`, each [rows, length]; a collator's.
        outer: what wraps the network in a distributed training; the pass goes through it.

    Returns:
        float32 logits [n, vocabulary] and their n targets, row by row.
    """
    inputs, targets, supervised = _split(batch)
    with _hidden_states_at(network, supervised, True):
        logits: Tensor = (outer or network)(**inputs, use_cache=False).logits
    return logits.float().reshape(-1, logits.shape[-1]), targets[supervised]


def _split(batch: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """The model's inputs; targets [rows, length - 1]; and which of them are supervised."""
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name not in ("labels", "borders")}
    if "borders" in batch:
        inputs["borders"] = batch["borders"].tolist()  # for `packed_attention`
    if "seq_idx" in batch:  # the same for kernels of recurrent layers and for flash attention, under their own names
        longest = int(batch["borders"].diff().max())
        for kind in "qk":
            inputs |= {f"cu_seq_lens_{kind}": batch["borders"].to(torch.int32), f"max_length_{kind}": longest}
    targets = batch["labels"][:, 1:]  # the token at position i is predicted at position i - 1
    return inputs, targets, targets != IGNORE


def loss_sum(
    network: nn.Module, batch: Mapping[str, Tensor], in_pieces: bool = False, outer: nn.Module | None = None
) -> tuple[Tensor, int]:
    """Summed negative log-likelihood in nats, and over how many tokens.

    Args:
        in_pieces: compute logits and their gradient a few positions at a time. For models whose logits
            are the output layer's, as they are, and where that layer is not trained: see `probes.head_is_plain`.
    """
    if not in_pieces:
        logits, targets = supervised_logits(network, batch, outer)
        return nn.functional.cross_entropy(logits, targets, reduction="sum"), len(targets)
    inputs, targets, supervised = _split(batch)
    with _hidden_states_at(network, supervised, False) as hidden:
        (outer or network)(**inputs, use_cache=False)
    head: Any = network.get_output_embeddings()  # type: ignore[operator]
    loss: Tensor = _HeadLoss.apply(hidden[0], head.weight, head.bias, targets[supervised])  # type: ignore[no-untyped-call]
    return loss, int(supervised.sum())


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of a frozen output layer. The gradient is computed on the way forward, with the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """hidden [n, size], weight [vocabulary, size], targets [n] → a float32 scalar, in nats."""
        piece = max(16, LOGITS[hidden.device.type] // len(weight))
        hidden = hidden.to(weight.dtype)
        raw = hidden.new_empty(min(piece, len(hidden)), len(weight))
        logits = raw if raw.dtype == torch.float32 else torch.empty_like(raw, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), piece):
            states, target = hidden[start : start + piece], targets[start : start + piece, None]
            few = raw[: len(states)]
            torch.mm(states, weight.t(), out=few)
            if bias is not None:
                few += bias
            # log_softmax would compute every exponential twice
            odds = logits[: len(states)] if logits is raw else logits[: len(states)].copy_(few)
            right, top = odds.gather(1, target), odds.amax(1, keepdim=True)
            sums = odds.sub_(top).exp_().sum(1, keepdim=True)
            total += (sums.log() + top - right).sum()
            if gradient is not None:
                error = odds.div_(sums).scatter_add_(1, target, torch.full_like(sums, -1.0))
                torch.mm(few.copy_(error), weight, out=gradient[start : start + piece])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the hidden states; the layer itself is frozen."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None
