"""What an adapter changes in its base: low-rank updates, and tensors or rows that were trained as a whole.

Names and arithmetic are those of PEFT 0.21. `lockstep/model/adapter_files.py` reads them from disk.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from lockstep.errors import UserError
from lockstep.model.stacked_update import StackedLowRank

EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")  # PEFT saves these whole where a vocabulary grew
BLOCK = 2**21  # elements that are computed at a time: they stay in a CPU's cache

Shapes = Mapping[str, Sequence[int]]
Change = TypeVar("Change")


@dataclass(frozen=True)
class LowRank:
    """W + scale · B [out, r] · A [r, in]; with DoRA's magnitude [out], the rows of that sum take these lengths."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.a)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the update has a weight's shape."""
        rows = self.b if self.magnitude is None else self.magnitude
        return tuple(shape) == (len(self.b), self.a.shape[1]) and len(rows) == shape[0]

    def added_to(self, weight: Tensor, rows: slice) -> Tensor:
        """These rows of the trained weight, in float32, from the same rows of the base's."""
        total = weight.to(torch.float32, copy=True)
        total.addmm_(self.b[rows].float(), self.a.float(), alpha=self.scale)
        if self.magnitude is None:
            return total
        return total.mul_((self.magnitude[rows].float() / torch.linalg.norm(total, dim=1))[:, None])


@dataclass(frozen=True)
class TrainedRows:
    """Rows of an embedding that were trained alone: row `indices[i]` becomes `values[i]`.

    Attributes:
        indices: [rows], of the vocabulary.
        values: [rows, width].
    """

    indices: Tensor
    values: Tensor

    def equals(self, other: "TrainedRows") -> bool:
        return torch.equal(self.indices, other.indices) and torch.equal(self.values, other.values)

    def put_into(self, weight: Tensor, rows: slice) -> Tensor:
        """These rows of the trained weight, from the same rows of the base's."""
        here = (self.indices >= rows.start) & (self.indices < rows.stop)
        places, values = self.indices[here] - rows.start, self.values[here]
        return weight.to(values.dtype).index_copy(0, places, values) if len(places) else weight


@dataclass(frozen=True)
class AdapterDelta:
    """What was trained, by the names of the base's tensors; without arguments, nothing.

    Attributes:
        whole: trained tensors that take the base tensors' place.
        rows: single rows likewise.
        embeddings: what the adapter was trained on instead of the base's embeddings, with more rows perhaps.
        modules_to_save, bias: of its config; they say which whole tensors there must be.
    """

    low_rank: dict[str, LowRank | StackedLowRank] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, TrainedRows] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"

    @property
    def names(self) -> set[str]:
        """Every tensor that the adapter changes."""
        return {*self.low_rank, *self.whole, *self.rows, *self.embeddings}

    @property
    def changed_experts(self) -> dict[str, int]:
        """Each parameter that holds all experts of a layer → how many of them the adapter changes."""
        return {name: part.changed for name, part in self.low_rank.items() if isinstance(part, StackedLowRank)}

    def saves(self, name: str) -> bool:
        """Whether PEFT saves this base tensor as a whole, by its rules for `bias` and `modules_to_save`."""
        module, _, kind = name.rpartition(".")
        if kind == "bias":
            beside_update = f"{module}.weight" in self.low_rank
            if self.bias == "all" or (self.bias == "lora_only" and beside_update):
                return True
        # a.b.c is saved where a, a.b or a.b.c ends with a name of modules_to_save
        outer_modules = accumulate(module.split("."), "{}.{}".format)
        return any(outer.endswith(self.modules_to_save) for outer in outer_modules)

    def keeps_tied(self, first: str, second: str) -> bool:
        """Whether two tensors that are one in the base are still one after training as PEFT does it.

        It trains a copy of the head or of the embedding, and the other one stays as it was: a head does
        not follow an embedding of modules_to_save. Rows that are trained alone are those of both.
        """
        if {first, second} & self.low_rank.keys() or self.saves(first) != self.saves(second):
            return False
        for tensors in (self.whole, self.embeddings):
            trained = [tensors[name] for name in (first, second) if name in tensors]
            if len(trained) == 1 or (trained and not torch.equal(*trained)):
                return False
        rows = [self.rows[name] for name in (first, second) if name in self.rows]
        return len(rows) < 2 or rows[0].equals(rows[1])

    def without(self, names: Collection[str]) -> "AdapterDelta":
        """The same adapter, leaving these tensors as they are."""

        def others(part: dict[str, Change]) -> dict[str, Change]:
            return {name: change for name, change in part.items() if name not in names}

        return replace(
            self,
            low_rank=others(self.low_rank),
            whole=others(self.whole),
            rows=others(self.rows),
            embeddings=others(self.embeddings),
        )

    def shape(self, name: str, base: Sequence[int]) -> tuple[int, ...]:
        """The shape of the trained tensor, from that of the base's."""
        trained = self.whole.get(name, self.embeddings.get(name))
        return tuple(base if trained is None else trained.shape)

    def check_base(self, shapes: Shapes, base: str) -> None:
        """Compare names and shapes with those of a base.

        Args:
            shapes: of all its tensors; where the adapter makes two of tied ones, of both.
            base: its name, for messages.

        Raises:
            UserError: the adapter changes a tensor that the base lacks, does not fit it, or lacks one itself.
        """
        for missing in sorted(self.names - shapes.keys()):
            raise UserError(f"the adapter belongs to another base: {missing} is not in {base}")
        for name, shape in shapes.items():
            if not (self._update_fits(name, shape) and self._whole_fits(name, shape, shapes)):
                raise UserError(f"the adapter belongs to another base: {name} has shape {tuple(shape)} there")
            if self.saves(name) and name not in self.whole:
                raise UserError(f"the adapter is incomplete: {name} is missing")

    def _update_fits(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a low-rank update and trained rows fit the tensor that they were trained on."""
        embedding = self.embeddings.get(name)
        under = tuple(shape) if embedding is None else tuple(embedding.shape)  # may have more rows than the base
        update, rows = self.low_rank.get(name), self.rows.get(name)
        if update is not None and not update.fits(under):
            return False
        return rows is None or (rows.values.shape[1:] == under[1:] and int(rows.indices.max()) < under[0])

    def _whole_fits(self, name: str, shape: Sequence[int], shapes: Shapes) -> bool:
        """Whether the trained tensor has the base's shape; embeddings and head may have more rows, but both alike."""
        trained = self.shape(name, shape)
        if trained == tuple(shape):
            return True
        if not (name.endswith(EMBEDDINGS) and len(trained) == 2 and trained[1:] == tuple(shape)[1:]):
            return False
        vocabularies = {self.shape(other, size)[0] for other, size in shapes.items() if other.endswith(EMBEDDINGS)}
        return vocabularies == {trained[0]}

    def pieces(self, name: str, weight: Tensor) -> Iterator[Tensor]:
        """What training made of a base tensor, in blocks of rows; the tensor itself where the adapter leaves it alone.

        Raises:
            UserError: the adapter names the tensor, but changes nothing in it.
        """
        weight = self.embeddings.get(name, weight)
        whole, update, rows = self.whole.get(name), self.low_rank.get(name), self.rows.get(name)
        no_effect = (whole is not None and _equal(whole, weight)) or (
            rows is not None and _equal(rows.values, weight[rows.indices])
        )
        if no_effect:
            raise UserError(f"the adapter has no effect on {name}: it was not trained, or damaged")
        if whole is not None:
            weight = whole
        if weight.dim() == 0:  # one number, such as a bound of Gemma 4's clipped layers
            yield weight
            return
        # in blocks that stay in the cache: a float32 copy of the largest tensor would be the peak of memory
        for block in _blocks(weight):
            piece = weight[block]
            if rows:
                piece = rows.put_into(piece, block)
            yield update.added_to(piece, block) if update else piece


def _blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of a tensor's rows, each of about BLOCK elements."""
    count = max(1, BLOCK * len(tensor) // max(1, tensor.numel()))
    yield from (slice(start, start + count) for start in range(0, len(tensor), count))


def _equal(trained: Tensor, base: Tensor) -> bool:
    """Whether the base, in the dtype of the trained tensor, is that tensor; block by block."""
    if trained.shape != base.shape:
        return False
    if trained.dim() == 0:
        return torch.equal(trained, base.to(trained.dtype))
    return all(torch.equal(trained[block], base[block].to(trained.dtype)) for block in _blocks(trained))
