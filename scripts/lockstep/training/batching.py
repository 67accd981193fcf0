"""Which rows meet in an optimizer step, and how a step's rows are laid out in forward passes.

A window holds the rows of one optimizer step, the effective batch. How it is cut into passes does
not change the step: losses are summed over the window's supervised tokens and divided once. So a pass
may hold as many rows as memory allows, of like length, and each process its share of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Sampler

from lockstep.data.collator import IGNORE, Collator, PackingCollator, common_prefix

if TYPE_CHECKING:
    import torch

TokenRow = Mapping[str, Any]


class WindowSampler(Sampler[list[int]]):
    """The windows of one epoch: a random order of rows, cut into equal pieces; the last may be shorter.

    Args:
        rows: how many there are.
        window: rows in one optimizer step, over all processes.
        seed: with the epoch it fixes the order, whatever was drawn before: a resumed training sees the same.
    """

    def __init__(self, rows: int, window: int, seed: int) -> None:
        self.rows, self.window, self.seed = rows, window, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called when an epoch begins: by the loader, or by Trainer where it resumes within one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.window)

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        yield from (order[start : start + self.window] for start in range(0, self.rows, self.window))


class WindowLoader(DataLoader[Any]):
    """A DataLoader of windows that tells its sampler the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer when an epoch begins."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Window:
    """One process's share of an optimizer step.

    Attributes:
        lanes: the passes, batches for the model, each with `labels`: one list for each lane, whose passes
            are computed one after another, beside those of other lanes. Every process has equally many.
    """

    lanes: list[list[dict[str, "torch.Tensor"]]]

    @property
    def passes(self) -> list[dict[str, "torch.Tensor"]]:
        """Those of all lanes."""
        return [batch for lane in self.lanes for batch in lane]

    @property
    def tokens(self) -> int:
        """Tokens of this process's rows, padding apart, a shared beginning counted for each."""
        return sum(_tokens_in(batch) for batch in self.passes)

    @property
    def supervised(self) -> int:
        """Supervised tokens of this process's share."""
        return sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in self.passes)


def _tokens_in(batch: Mapping[str, "torch.Tensor"]) -> int:
    if "borders" not in batch:
        return int(batch["attention_mask"].sum())
    shared = int(batch["borders"][0])
    return batch["input_ids"].numel() + shared * (len(batch["borders"]) - 2)


def assign_passes(
    lengths: Sequence[int], limit: int, rows_in_a_pass: int | None, processes: int
) -> list[list[list[int]]]:
    """Passes for each process: lists of places in `lengths`, every process with equally many passes.

    Longest rows first, each to the process with the fewest tokens so far, and there into the first
    pass that has room. So a row too long for the memory shows in the first pass.

    Args:
        limit: tokens that a pass may hold; a longer row gets a pass of its own.
        rows_in_a_pass: for padded passes: how many rows one may hold, all counted as long as the longest.
            None: rows are laid end to end, so that only their tokens count.
        processes: that share the window. Where they are more than rows, some passes are empty.
    """

    def has_room(together: list[int], place: int) -> bool:
        if rows_in_a_pass is None:
            return sum(lengths[other] for other in together) + lengths[place] <= limit
        # the first row of a pass is its longest
        return len(together) < rows_in_a_pass and (len(together) + 1) * lengths[together[0]] <= limit

    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        lightest = tokens.index(min(tokens))
        share = shares[lightest]
        roomy = next((rows for rows in share if has_room(rows, place)), None)
        if roomy is None:
            share.append([place])
        else:
            roomy.append(place)
        tokens[lightest] += lengths[place]
    most = max(len(share) for share in shares)
    return [share + [[]] * (most - len(share)) for share in shares]


@dataclass(frozen=True)
class WindowCollator:
    """Rows of a window → the passes of this process.

    Args:
        pad_token_id: for padded passes.
        rows_in_a_pass: with `max_length` it says what a pass holds: as many tokens as so many longest rows.
        packed: lay rows end to end instead of padding them.
        share_prefix: let rows of a pass that begin alike share that beginning; see PackingCollator.
        sequence_ids: tell recurrent layers which row a token is of; see PackingCollator.
        rank: of this process, among `processes`.
        lanes: how many passes are computed at the same time. Together they hold what one by itself would.
    """

    pad_token_id: int
    rows_in_a_pass: int
    max_length: int
    packed: bool
    share_prefix: bool = False
    sequence_ids: bool = False
    rank: int = 0
    processes: int = 1
    lanes: int = 1

    def __call__(self, rows: Sequence[TokenRow]) -> Window:
        # what all rows of the window begin with, every pass computes once
        shared = common_prefix(rows) if self.share_prefix else 0
        lengths = [len(row["input_ids"]) - shared for row in rows]
        lanes = max(1, min(self.lanes, self.rows_in_a_pass, len(rows)))
        at_once = self.rows_in_a_pass // lanes
        limit = at_once * self.max_length - shared
        shares = assign_passes(lengths, limit, None if self.packed else at_once, self.processes * lanes)
        packing = PackingCollator(self.share_prefix, self.sequence_ids)
        collate = packing if self.packed else Collator(self.pad_token_id)

        def batch(places: Sequence[int]) -> dict[str, "torch.Tensor"]:
            return collate([rows[place] for place in places] or [silenced(rows[0])])

        own_lanes = shares[self.rank * lanes : (self.rank + 1) * lanes]
        return Window([[batch(places) for places in lane] for lane in own_lanes])


def silenced(row: TokenRow) -> TokenRow:
    """A row without loss, for a process that has no row left: all processes take part in every pass."""
    return {"input_ids": row["input_ids"][:2], "labels": [IGNORE] * min(2, len(row["input_ids"]))}
