"""What a network does, tried on short rows before it is trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.data.collator import IGNORE, PackingCollator
from lockstep.training import loss

SHARED = 8  # tokens that the rows begin with
LENGTHS = {"cuda": (150, 161, 139)}  # of what follows; GPU kernels compute in chunks of up to 256 tokens
SHORT = (7, 13, 10)


def probe_tokens(network: nn.Module, count: int, start: int = 0) -> list[int]:
    """Ids of text: distinct ones from all over the vocabulary, as far as it has so many; none with a role of its own.

    Args:
        start: another one gives other tokens.
    """
    ids = text_ids(network)
    step = max(1, len(ids) // (4 * count))
    return [ids[(start + place * step) % len(ids)] for place in range(count)]


def text_ids(network: nn.Module) -> list[int]:
    """The ids of its vocabulary to which a network's config gives no role of their own."""
    config: Any = network.config
    text = config.get_text_config()
    special = {0, 1, 2}
    for part in (config, text):
        for name, value in part.to_dict().items():
            if name.endswith(("token_id", "token_ids", "token_index")):
                special.update(value if isinstance(value, list) else [value])
    return [token for token in range(text.vocab_size) if token not in special]


def probe_rows(network: nn.Module, variant: int = 0, length: int | None = None) -> list[dict[str, list[int]]]:
    """Three rows that begin alike; the second is the same in every variant. All after the beginning carries loss.

    Args:
        length: of what follows the beginning, in tokens; None: as this device's kernels need it.
    """
    device = next(network.parameters()).device.type
    sizes = (length,) * 3 if length else LENGTHS.get(device, SHORT)
    tokens = probe_tokens(network, SHARED + 2 * sum(sizes))
    shared, rest = tokens[:SHARED], tokens[SHARED:]
    rows = []
    for number, size in enumerate(sizes):
        start = sum(sizes[:number]) + (sum(sizes) if variant and number != 1 else 0)
        own = rest[start : start + size]
        if variant and number == 0:  # experts of a limited capacity are full of it
            own = own[:1] * size
        ids = [*shared, *own]
        rows.append({"input_ids": ids, "labels": [IGNORE] * (SHARED + 1) + ids[SHARED + 1 :]})
    return rows


def head_is_plain(network: nn.Module) -> bool:
    """Whether the logits are the output layer's as they are: not scaled, not capped. And the layer is frozen."""
    head: Any = network.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or head.weight.requires_grad:
        return False
    outputs: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, __, output: outputs.append(output))
    batch = on_device(network, PackingCollator()(probe_rows(network)[:1]))
    try:
        with torch.no_grad(), in_mode(network, False):
            logits, _ = loss.supervised_logits(network, batch)
    finally:
        hook.remove()
    return len(outputs) == 1 and torch.equal(outputs[0].float().reshape(logits.shape), logits)


def has_experts(network: nn.Module) -> bool:
    """Whether tokens go to some experts each."""
    return any("experts" in name.rpartition(".")[2] for name, _ in network.named_modules())


def draws_in_training(network: nn.Module) -> bool:
    """Whether a pass in training on a CPU draws from torch's own generator of random numbers."""
    batch = on_device(network, PackingCollator()(probe_rows(network)))
    with torch.no_grad(), in_mode(network, True), unchanged_randomness(network):
        before = torch.get_rng_state()
        loss.supervised_logits(network, batch)
        return not torch.equal(before, torch.get_rng_state())


def on_device(network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch where the network is."""
    device = next(network.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode, and back to what it was."""
    before = network.training
    network.train(training)
    try:
        yield
    finally:
        network.train(before)


@contextmanager
def unchanged_randomness(network: nn.Module) -> Iterator[None]:
    """torch's generators are what they were, whatever the block draws."""
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
