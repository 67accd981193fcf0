"""What an adapter does to its base: low-rank updates, and tensors or rows that were trained as a whole.

Names and arithmetic are those of PEFT 0.21. `lockstep/model/adapter_files.py` reads them from disk.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from lockstep.errors import UserError

EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")  # PEFT saves these whole where a vocabulary grew
BLOCK = 2**21  # elements that are computed at a time: they stay in a CPU's cache

Shapes = Mapping[str, Sequence[int]]
Done = TypeVar("Done")


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
class Rows:
    """Rows of an embedding that were trained alone: row `indices[i]` becomes `values[i]`."""

    indices: Tensor
    values: Tensor

    def are(self, others: "Rows") -> bool:
        return torch.equal(self.indices, others.indices) and torch.equal(self.values, others.values)

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

    low_rank: dict[str, LowRank] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"

    @property
    def names(self) -> set[str]:
        """Every tensor that the adapter changes."""
        return {*self.low_rank, *self.whole, *self.rows, *self.embeddings}

    def saves(self, name: str) -> bool:
        """Whether PEFT saves this base tensor as a whole, by its rules for `bias` and `modules_to_save`."""
        module, _, kind = name.rpartition(".")
        if kind == "bias" and (
            self.bias == "all" or (self.bias == "lora_only" and f"{module}.weight" in self.low_rank)
        ):
            return True
        around = accumulate(module.split("."), "{}.{}".format)
        return any(outer.endswith(self.modules_to_save) for outer in around)

    def alike(self, one: str, other: str) -> bool:
        """Whether two tensors that are one in the base are one after training, too, as PEFT trains them.

        It trains a copy of the head or of the embedding, and the other one stays as it was: a head does
        not follow an embedding of modules_to_save. Rows that are trained alone are those of both.
        """
        if {one, other} & self.low_rank.keys() or self.saves(one) != self.saves(other):
            return False
        for found in (self.whole, self.embeddings):
            given = [found[name] for name in (one, other) if name in found]
            if len(given) == 1 or (given and not torch.equal(*given)):
                return False
        rows = [self.rows[name] for name in (one, other) if name in self.rows]
        return len(rows) < 2 or rows[0].are(rows[1])

    def without(self, names: Collection[str]) -> "AdapterDelta":
        """The same, with nothing done to these tensors."""

        def left(part: dict[str, Done]) -> dict[str, Done]:
            return {name: done for name, done in part.items() if name not in names}

        return replace(
            self,
            low_rank=left(self.low_rank),
            whole=left(self.whole),
            rows=left(self.rows),
            embeddings=left(self.embeddings),
        )

    def shape(self, name: str, base: Sequence[int]) -> tuple[int, ...]:
        """The shape of the trained tensor, from that of the base's."""
        found = self.whole.get(name, self.embeddings.get(name))
        return tuple(base if found is None else found.shape)

    def check(self, shapes: Shapes, base: str) -> None:
        """Compare names and shapes with those of a base.

        Args:
            shapes: of all its tensors; where the adapter pulls tied ones apart, of both.
            base: its name, for messages.

        Raises:
            UserError: the adapter changes a tensor that the base lacks, does not fit it, or lacks one itself.
        """
        for missing in sorted(self.names - shapes.keys()):
            raise UserError(f"the adapter belongs to another base: {missing} is not in {base}")
        for name, shape in shapes.items():
            under = self.embeddings.get(name)
            wide = tuple(shape) if under is None else tuple(under.shape)
            update, rows = self.low_rank.get(name), self.rows.get(name)
            fits = update is None or update.fits(wide)
            fits &= rows is None or (rows.values.shape[1:] == wide[1:] and int(rows.indices.max()) < wide[0])
            now = self.shape(name, shape)
            grown = name.endswith(EMBEDDINGS) and len(now) == 2
            fits &= now[1:] == tuple(shape)[1:] if grown else now == tuple(shape)
            # one vocabulary on both sides
            fits &= now == tuple(shape) or all(
                self.shape(other, size)[0] == now[0] for other, size in shapes.items() if other.endswith(EMBEDDINGS)
            )
            if not fits:
                raise UserError(f"the adapter belongs to another base: {name} has shape {tuple(shape)} there")
            if self.saves(name) and name not in self.whole:
                raise UserError(f"the adapter is incomplete: {name} is missing")

    def pieces(self, name: str, weight: Tensor) -> Iterator[Tensor]:
        """What training made of a base tensor, in blocks of rows; the tensor itself where the adapter leaves it alone.

        Raises:
            UserError: the change is none.
        """
        weight = self.embeddings.get(name, weight)
        trained = self.whole.get(name)
        if trained is not None and _equal(trained, weight):
            raise UserError(f"the adapter has no effect on {name}: it was not trained, or damaged")
        update, rows = self.low_rank.get(name), self.rows.get(name)
        if rows and _equal(rows.values, weight[rows.indices]):
            raise UserError(f"the adapter has no effect on {name}: it was not trained, or damaged")
        for part in _blocks(weight if trained is None else trained):
            piece = (weight if trained is None else trained)[part]
            piece = rows.put_into(piece, part) if rows else piece
            yield update.added_to(piece, part) if update else piece


def _blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of a tensor's rows, each of about BLOCK elements."""
    count = max(1, BLOCK * len(tensor) // max(1, tensor.numel()))
    yield from (slice(start, start + count) for start in range(0, len(tensor), count))


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether the second, in the dtype of the first, is the first; block by block."""
    return one.shape == other.shape and all(torch.equal(one[p], other[p].to(one.dtype)) for p in _blocks(one))
