"""Rows of token ids → one batch: padded, or laid end to end without padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORE = -100  # the label of a token that carries no loss


@dataclass(frozen=True)
class Collator:
    """Pads on the right to the longest row, rounded up to a multiple.

    The attention mask comes from the rows' lengths, never from comparing ids with the pad token:
    many models pad with their end-of-turn token, and a real one must stay visible.

    Args:
        pad_token_id: any id of the vocabulary; padding is neither attended nor supervised.
        pad_to_multiple_of: 8 suits tensor cores and vector units.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 8

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, "torch.Tensor"]:
        """`input_ids`, `attention_mask` and `labels`, each of shape [rows, length]."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        input_ids = torch.full((len(rows), length), self.pad_token_id)
        attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORE)
        for index, row in enumerate(rows):
            size = len(row["input_ids"])
            input_ids[index, :size] = torch.as_tensor(row["input_ids"])
            attention_mask[index, :size] = 1
            labels[index, :size] = torch.as_tensor(row["labels"])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@dataclass(frozen=True)
class PackingCollator:
    """Lays rows end to end as one sequence, without padding.

    Positions start again at 0 with each row. The first label of each row is IGNORE: no row predicts
    the beginning of the next.

    Args:
        share_prefix: rows that begin with the same tokens (a system prompt) have the same hidden states
            there; they are computed once, as the beginning of the pass, and every row goes on from them.
        sequence_ids: add `seq_idx` [1, tokens], which row a token is of. Kernels of recurrent layers ask for it.
    """

    share_prefix: bool = False
    sequence_ids: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, "torch.Tensor"]:
        """`input_ids`, `position_ids` and `labels`, each [1, tokens], and `borders` [1 + rows].

        `borders` are the places where the shared beginning and then each row end.
        """
        import torch

        shared = common_prefix(rows) if self.share_prefix else 0
        sizes = [len(row["input_ids"]) - shared for row in rows]
        # the shared beginning stands once, before all rows; each row goes on from it at the same position
        ids, positions, labels = [rows[0]["input_ids"][:shared]], [torch.arange(shared)], [[IGNORE] * shared]
        for row, size in zip(rows, sizes, strict=True):
            ids.append(row["input_ids"][shared:])
            positions.append(torch.arange(shared, shared + size))
            labels.append([IGNORE, *row["labels"][shared + 1 :]])
        batch = {
            "input_ids": torch.cat([torch.as_tensor(part, dtype=torch.long) for part in ids])[None],
            "position_ids": torch.cat(positions)[None],
            "labels": torch.cat([torch.as_tensor(part, dtype=torch.long) for part in labels])[None],
            "borders": torch.tensor([shared, *sizes]).cumsum(0),
        }
        if self.sequence_ids:
            numbers = torch.arange(len(rows), dtype=torch.int32)
            batch["seq_idx"] = numbers.repeat_interleave(torch.tensor(sizes))[None]
        return batch


def common_prefix(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many tokens all rows begin with alike, as far as none of them, nor the next one, carries loss."""
    if len(rows) < 2:
        return 0
    length = min(len(row["input_ids"]) for row in rows) - 1
    for row in rows:
        silent = next((place for place, label in enumerate(row["labels"]) if label != IGNORE), len(row["labels"]))
        length = min(length, silent - 1)
    length = max(length, 0)
    for row, following in pairwise(rows):
        pairs = zip(row["input_ids"][:length], following["input_ids"][:length], strict=True)
        length = next((place for place, (a, b) in enumerate(pairs) if a != b), length)
    return length
