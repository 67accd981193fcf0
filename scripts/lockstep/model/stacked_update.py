"""What an adapter changes in a stack of experts: a low-rank update of each, of PEFT 0.21's `target_parameters`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lockstep.errors import UserError

INNER = ".base_layer"  # PEFT wraps a module once for each of its parameters, one wrapper around the other


@dataclass(frozen=True)
class StackedLowRank:
    """W + scale · B [experts, out, r] · A [experts, r, in] of each expert.

    Attributes:
        transposed: the base holds the matrices as [in, out]; None where that is not known yet.
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool | None = None
    magnitude: None = None  # PEFT knows no DoRA of these

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the update, in the base's layout."""
        experts, out, into = len(self.a), self.b.shape[1], self.a.shape[2]
        return (experts, into, out) if self.transposed else (experts, out, into)

    @property
    def changed(self) -> int:
        """How many experts it changes: those that no row of the training reached have an update of zeros."""
        return int((self.a.flatten(1).any(1) & self.b.flatten(1).any(1)).sum())

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the update has a weight's shape."""
        return tuple(shape) == self.shape

    def added_to(self, weight: Tensor, rows: slice) -> Tensor:
        """The trained matrices of these experts, in float32, from those of the base."""
        total = weight.to(torch.float32, copy=True)
        a, b = self.a[rows].float(), self.b[rows].float()
        left, right = (a.mT, b.mT) if self.transposed else (b, a)
        return total.baddbmm_(left, right, alpha=self.scale)


def parameter_of(module: str, below: Mapping[str, int], targets: Sequence[str]) -> str | None:
    """The base's own name of the parameter that a wrapper adapts; None where the module is no such wrapper.

    PEFT's file does not say it: the outermost wrapper of a module adapts the last of its parameters that are targeted,
    in the order of the module's class. All classes of transformers have `down_proj` last, and biases after their
    matrices (tests compare).

    Args:
        module: as the file names it, with `.base_layer` for each wrapper around this one.
        below: how many wrappers each module has, by its own name.
        targets: `target_parameters` of the adapter's config.

    Raises:
        UserError: the file holds more or fewer wrappers than the config names parameters.
    """
    plain = module.replace(INNER, "")
    leaves = {target.rpartition(".")[2] for target in targets if _is_in(plain, target)}
    if not leaves:
        return None
    order = sorted(leaves, key=lambda leaf: (leaf.startswith("down"), leaf.endswith("bias"), leaf))
    if len(order) != below[plain]:
        raise UserError(
            f"the adapter is incomplete: {below[plain]} parameters of {plain}, and its config names {len(order)}"
        )
    return f"{plain}.{order[len(order) - 1 - module.count(INNER)]}"


def _is_in(module: str, target: str) -> bool:
    """Whether a name in `target_parameters` means a parameter of a module."""
    owner, _, leaf = target.rpartition(".")
    if not owner:  # a parameter of any module, and no module but experts has such ones
        return module.endswith("experts")
    return f".{module}.{leaf}".endswith(f".{target}")


def stacked(name: str, a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [experts, r, in] and B [experts, out, r], from PEFT's [r · experts, in] and [out, r · experts].

    Raises:
        UserError: the shapes are those of no number of experts.
    """
    experts = len(a) // rank
    if a.ndim != 2 or b.ndim != 2 or len(a) != experts * rank or b.shape[1] != len(a):
        raise UserError(
            f"the adapter is damaged: {name} has tensors of {tuple(a.shape)} and {tuple(b.shape)}, and rank {rank}"
        )
    return a.view(experts, rank, -1), b.reshape(len(b), rank, experts).permute(2, 0, 1)


def oriented(updates: Mapping[str, Any], transposed: Mapping[str, bool]) -> dict[str, Any]:
    """Updates that know how the base holds each stack.

    Args:
        transposed: of each stack in the base, whether its matrices are [in, out].
    """
    return {
        name: StackedLowRank(update.a, update.b, update.scale, transposed[name])
        if isinstance(update, StackedLowRank) and name in transposed
        else update
        for name, update in updates.items()
    }
