"""Rows of token ids → one batch: padded, or laid end to end without padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, "torch.Tensor"]:
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

    transformers keeps the rows apart by their positions, which start again at 0 with each row, but
    only where there is no attention mask and no cache: with either, rows would see each other.
    The first label of each row is IGNORE: no row predicts the beginning of the next.
    """

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, "torch.Tensor"]:
        """`input_ids`, `position_ids` and `labels`, each of shape [1, tokens]."""
        import torch

        input_ids = torch.cat([torch.as_tensor(row["input_ids"]) for row in rows])
        positions = torch.cat([torch.arange(len(row["input_ids"])) for row in rows])
        labels = torch.cat([torch.as_tensor([IGNORE, *row["labels"][1:]]) for row in rows])
        return {"input_ids": input_ids[None], "position_ids": positions[None], "labels": labels[None]}
