"""Which rows meet in a batch: rows of like length, without changing what an optimizer step sees."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class WindowSampler(Sampler[int]):
    """A random order of rows, in which each window is sorted by length, the longest first.

    A window holds the rows of one optimizer step. Sorting inside it leaves every step's rows,
    and so its gradient, as they are; micro-batches get rows of like length and hardly any
    padding, and rows too long for the memory show in the first pass.

    Args:
        lengths: tokens of each row.
        window: rows in one optimizer step.
        seed: with the epoch it fixes the order, whatever was drawn before: a resumed training sees the same.
    """

    def __init__(self, lengths: Sequence[int], window: int, seed: int) -> None:
        self.lengths, self.window, self.seed = lengths, window, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate when an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.window):
            yield from sorted(order[start : start + self.window], key=lambda row: -self.lengths[row])
