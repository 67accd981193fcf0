"""Exact tests of which tokens a loss depends on: its gradient at the input embeddings is zero, or it is not.

Comparing logits within a tolerance cannot tell a small leak from rounding, and a leak grows while the model trains.
A gradient that no operation carries is 0.0 in every dtype, with dropout and without. Only a discrete choice, such as
which expert a token goes to, carries none: so other tokens in the rows beside are tried, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.data.collator import IGNORE, Collator, PackingCollator
from lockstep.errors import UserError, is_out_of_memory
from lockstep.training import loss, packed_attention, probes
from lockstep.training.probes import SHARED, in_mode, on_device, probe_rows, unchanged_randomness

Batch = Mapping[str, Tensor]

CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the logits' spread, on average; other dtypes: ROUGH
ROUGH = 0.1


@contextmanager
def _embeddings(network: nn.Module) -> Iterator[list[Tensor]]:
    """What the input embeddings give, as leaves of the graph that a pass builds."""
    collected: list[Tensor] = []

    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        collected.append(output.detach().requires_grad_())
        return collected[-1].clone()  # models change it in place

    hook = network.get_input_embeddings().register_forward_hook(replace)  # type: ignore[operator]
    try:
        yield collected
    finally:
        hook.remove()


def reach(network: nn.Module, batch: Batch, choices: Sequence[Tensor]) -> list[Tensor]:
    """Which tokens' embeddings a loss has a gradient at.

    Args:
        batch: a collator's.
        choices: each bool [rows, length]: the tokens whose loss is meant.

    Returns:
        bool [rows, length] for each choice. A gradient that is not finite counts as one.
    """
    with _embeddings(network) as embedded:
        logits, targets = loss.supervised_logits(network, batch)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    supervised = batch["labels"][:, 1:] != IGNORE
    reached = []
    for number, choice in enumerate(choices):
        total = losses[choice[:, 1:][supervised]].sum()
        kept = number + 1 < len(choices)
        gradients = torch.autograd.grad(total, embedded, retain_graph=kept, allow_unused=True)
        seen = torch.zeros_like(batch["labels"], dtype=torch.bool)
        for gradient in gradients:
            if gradient is not None:
                seen |= (gradient != 0).any(-1)  # true of NaN
        reached.append(seen)
    return reached


def require_causal(network: nn.Module) -> None:
    """Refuse a network that cannot be trained on padded rows, with the attention that it has of itself.

    Raises:
        UserError: what it predicts depends on later tokens, or on other rows of the batch.
    """
    batch = on_device(network, Collator(0)(probe_rows(network)))
    place = SHARED + 2
    token, row = (torch.zeros_like(batch["labels"], dtype=torch.bool) for _ in range(2))
    token[1, place] = row[1] = True
    own = packed_attention.plain(network)
    with packed_attention.implementation(network, own), in_mode(network, True), unchanged_randomness(network):
        of_token, of_row = reach(network, batch, (token, row))
    if of_token[1, place:].any():
        raise UserError(
            f"{type(network).__name__} is no causal language model: what it predicts depends on later tokens, which it "
            f"will not have when it answers; train a base that generates text"
        )
    of_row[1] = False
    if of_row.any():
        raise UserError(
            f"the rows of a batch see each other in {type(network).__name__}: what it predicts would depend on which "
            f"rows are trained together, and no layout of rows keeps them apart"
        )


def rows_stay_apart(network: nn.Module, max_length: int, collate: PackingCollator | None = None) -> bool:
    """Whether rows that `collate` lays end to end are computed as each of them is by itself.

    Models with a recurrent state or a convolution carry it from row to row; models without rotary positions may know
    no borders; others attend in ways that `packed_attention` does not know. The network's attention is the one that
    training will use.
    """
    text: Any = network.config.get_text_config()  # type: ignore[union-attr, operator]
    windows = (getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None))
    if any(window and window < max_length for window in windows):
        return False
    collate = collate or PackingCollator()
    batch = on_device(network, collate(probe_rows(network)))
    try:
        return (
            # some compute otherwise while they train: with dropout in their attention, or by other kernels
            all(_sees_itself_alone(network, batch, training) for training in (True, False))
            and _is_equal_beside_others(network, collate)
            and _is_as_its_own_attention_computes(network, batch)
        )
    except packed_attention.Unknown:
        return False
    except (RuntimeError, TypeError, ValueError) as error:
        # a class that takes no such keywords, a layer that needs a mask, a kernel for other shapes
        if is_out_of_memory(error):
            raise
        return False


def _sees_itself_alone(network: nn.Module, batch: Batch, training: bool) -> bool:
    """Whether the loss of the middle row depends on its own tokens, and on no other row's."""
    shared, first, second, _ = batch["borders"].tolist()
    own = torch.zeros_like(batch["labels"], dtype=torch.bool)
    own[0, first:second] = True
    with in_mode(network, training), unchanged_randomness(network):
        (seen,) = reach(network, batch, [own])
    own[0, :shared] = True
    return bool(seen[own].any()) and not seen[~own].any()


def _is_equal_beside_others(network: nn.Module, collate: PackingCollator) -> bool:
    """Whether the middle row has the same logits beside other rows of the same lengths.

    The same to the last bit where all tokens pass through the same matrices. Products of a token's experts are rounded
    by how many other tokens go there; an expert that is full and passes over a token changes far more.
    """
    logits = []
    for variant in (0, 1):
        batch = on_device(network, collate(probe_rows(network, variant)))
        with torch.no_grad(), in_mode(network, True), unchanged_randomness(network):
            torch.manual_seed(0)  # the same dropout
            logits.append(_middle(network, batch))
    return torch.equal(*logits) or (probes.has_experts(network) and _are_close(network, *logits))


def _is_as_its_own_attention_computes(network: nn.Module, batch: Batch) -> bool:
    """Whether the middle row has the logits that it has in a padded batch, by the model's own attention."""
    padded = on_device(network, Collator(0)(probe_rows(network)))
    with torch.no_grad(), in_mode(network, False):
        packed = _middle(network, batch)
        with packed_attention.implementation(network, packed_attention.plain(network)):
            return _are_close(network, _middle(network, padded), packed)


def _middle(network: nn.Module, batch: Batch) -> Tensor:
    """Logits of the middle one of three rows."""
    logits, _ = loss.supervised_logits(network, batch)
    sizes = probes.LENGTHS.get(logits.device.type, probes.SHORT)
    return logits[sizes[0] - 1 : sizes[0] + sizes[1] - 2]


def _are_close(network: nn.Module, logits: Tensor, others: Tensor) -> bool:
    """Whether they differ by rounding, and not by what is computed."""
    return bool((logits - others).abs().mean() <= CLOSE.get(computes_in(network), ROUGH) * logits.std())


def computes_in(network: nn.Module) -> torch.dtype:
    """The dtype of matrix products: autocast's where that is on, else the weights'."""
    weight: Tensor = network.get_output_embeddings().weight  # type: ignore[operator]
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
