"""How well a stored weight agrees with what it could be: trained, its base, or something between the two.

What rounding allows is derived, for a weight t = w + d, where d = scale · B·A:

- whoever merged, computed in float32 or in 16 bits. bfloat16, the coarser of the two, is off by at most u = 2⁻⁸ of a
  number. So each element of B and A is off by u, so is each product, and d by at most 3·u·scale·|B|·|A|, taking the sum
  of absolute values; rounding d itself adds u·|d|, and the sum w + d another u·|t|;
- what is stored is off by half a step of its dtype more, and by half of float16's smallest step if it once was float16.

A difference of d that is smaller than a step may be invisible in one element. Over a tensor it is not: the change
m − w, projected on d, is as long as the rounded change that is expected.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lockstep.model.adapter_delta import BLOCK, AdapterDelta, LowRank

UNIT = 2.0**-8  # of bfloat16, relative
SMALLEST = 2.0**-25  # half of float16's smallest step
UNITS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
FEWEST = 30  # changed elements from which a projection says something
PROJECTED = 0.1  # how far the projection of a tensor's change may be from the expected one, relative
ODD_SHARE, ODD_ROW = 1e-5, 0.02  # elements outside of what rounding allows: of a tensor, of a row of it
REQUANTIZED, REQUANTIZED_ROW = 1e-3, 0.1  # the same where another device's kernels quantized

Rows = Callable[[int, int], Tensor]


@dataclass
class Fit:
    """What was measured of a tensor, with t the trained, w the base's and m the stored weight, and d = t − w.

    Attributes:
        outside, outside_base: elements of m that are neither t nor w, within what rounding allows.
        worst_row, worst_row_base: the largest share of these in a row.
        dd, gd, gg: Σ d·d, Σ (m − w)·d, Σ (m − w)².
        rd, rd16: Σ (t − w, both rounded to m's dtype, or to bfloat16)·d.
        residual: Σ (m − t)².
        rounding: Σ of the squares of what rounding allows.
        expected, changed: elements in which t and m differ from w, as m's dtype rounds them.
        not_finite: elements of m that are infinite or no numbers, where t is finite.
        size: Σ w².
    """

    elements: int = 0
    outside: int = 0
    outside_base: int = 0
    worst_row: float = 0.0
    worst_row_base: float = 0.0
    dd: float = 0.0
    gd: float = 0.0
    gg: float = 0.0
    rd: float = 0.0
    rd16: float = 0.0
    residual: float = 0.0
    rounding: float = 0.0
    expected: int = 0
    changed: int = 0
    not_finite: int = 0
    size: float = 0.0

    @property
    def is_visible(self) -> bool:
        """Whether training changes enough for base and trained weight to be told apart."""
        return self.expected >= FEWEST and self.uncertainty <= 0.5

    @property
    def rest(self) -> float:
        """Σ of the squares of m − w, less the multiple of d that is nearest to it."""
        return max(0.0, self.gg - self.gd**2 / self.dd) if self.dd else self.gg

    @property
    def uncertainty(self) -> float:
        """Three standard errors of `scale`, if what is left, or what rounding allows, is noise independent of d."""
        noise = min(self.rounding / 3, self.rest)
        return 3 * math.sqrt(noise / (self.elements * self.dd)) if self.dd else math.inf

    @property
    def is_trained(self) -> bool:
        close = self.outside <= ODD_SHARE * self.elements and self.worst_row <= ODD_ROW
        return close and self._is_projected

    @property
    def is_requantized(self) -> bool:
        """The same, where the base's weights were quantized on another device."""
        close = self.outside <= REQUANTIZED * self.elements and self.worst_row <= REQUANTIZED_ROW
        return close and self._is_projected

    @property
    def is_base(self) -> bool:
        return not self.outside_base

    @property
    def is_requantized_base(self) -> bool:
        return self.outside_base <= REQUANTIZED * self.elements and self.worst_row_base <= REQUANTIZED_ROW

    @property
    def scale(self) -> float:
        """The multiple of d that is nearest to m − w, by least squares."""
        return self.gd / self.dd if self.dd else 0.0

    @property
    def survived(self) -> float:
        """How much of the change there is, of what rounding leaves of it: to m's dtype or, before, to bfloat16."""
        nearest = min((rd for rd in (self.rd, self.rd16) if rd > 0), key=lambda rd: abs(self.gd - rd), default=0.0)
        return self.gd / nearest if nearest else self.scale

    @property
    def is_scaled(self) -> bool:
        """Whether a multiple of d explains m as well as rounding allows."""
        differs = abs(self.scale) > 0.02 and abs(self.scale - 1) > max(0.005, self.uncertainty)
        return self.is_visible and differs and self.rest <= self.rounding

    @property
    def relative_error(self) -> float:
        """Of m as the trained weight: root of the quotient of the sums of squares."""
        return math.sqrt(self.residual / self.size) if self.size else 0.0

    @property
    def _is_projected(self) -> bool:
        """Whether the change is as large as expected, rounded to m's dtype or, before, to bfloat16."""
        allowed = PROJECTED + self.uncertainty
        return not self.is_visible or any(abs(self.gd - rd) <= allowed * rd for rd in (self.rd, self.rd16))

    def add(self, weight: Tensor, trained: Tensor, stored: Tensor, spread: Tensor | float, base_unit: float) -> None:
        """Rows of w, t and m.

        Args:
            spread: scale · |B|·|A|, which bounds the error of d.
            base_unit: how far an untouched element may be from the base's, relative.
        """
        unit = UNITS.get(stored.dtype, 0.0)
        base, after, actual = weight.float(), trained.float(), stored.float()
        delta, change = after - base, actual - base
        allowed = (UNIT + unit) * after.abs() + UNIT * (3 * spread + delta.abs()) + SMALLEST
        self.elements += actual.numel()
        self._count((actual - after).abs(), allowed, (change.abs(), base_unit * base.abs() + SMALLEST))
        coarse = after.bfloat16().float() - base.bfloat16().float()
        rounded = after.to(stored.dtype).float() - base.to(stored.dtype).float()
        self.expected += int((rounded != 0).sum())
        self.changed += int((actual != base.to(stored.dtype).float()).sum())
        self.not_finite += int((~actual.isfinite() & after.isfinite()).sum())
        for name, value in (
            ("dd", delta * delta), ("gd", change * delta), ("gg", change * change), ("rd", rounded * delta),
            ("rd16", coarse * delta), ("residual", (actual - after).square()), ("rounding", allowed.square()),
            ("size", base.square()),
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + float(value.nan_to_num(0.0, 0.0, 0.0).sum()))

    def _count(self, gap: Tensor, allowed: Tensor, base: tuple[Tensor, Tensor | float]) -> None:
        rows = (len(gap), -1) if gap.dim() > 1 else (1, -1)
        for outside, ending in ((~(gap <= allowed), ""), (~(base[0] <= base[1]), "_base")):
            by_row = outside.reshape(rows).sum(1)
            count, worst = f"outside{ending}", f"worst_row{ending}"
            setattr(self, count, getattr(self, count) + int(by_row.sum()))
            width = max(1, outside.numel() // rows[0])
            setattr(self, worst, max(getattr(self, worst), float(by_row.max()) / width if len(by_row) else 0.0))


def base_unit(base: torch.dtype, stored: torch.dtype) -> float:
    """How far an untouched element may be from the base's, relative: whoever merged may have computed in bfloat16."""
    return (
        UNITS.get(stored, 0.0)
        if base == torch.bfloat16 != stored
        else 0.0
        if base == stored == torch.bfloat16
        else UNIT
    )


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First row and the one after the last, of blocks of about BLOCK elements."""
    rows = shape[0] if shape else 1
    width = math.prod(shape[1:])
    step = max(1, BLOCK // max(1, width))
    yield from ((start, min(start + step, rows)) for start in range(0, rows, step))


def measure(
    name: str, shape: tuple[int, ...], base: Rows, stored: Rows, adapter: AdapterDelta, base_unit: float
) -> Fit:
    """Compare a stored parameter with what an adapter makes of the base's.

    Args:
        name: of the parameter, in memory.
        shape: of the stored one; the base may have fewer rows where the adapter brings an embedding of its own.
        base_unit: see `Fit.add`.
    """
    fit = Fit()
    for start, stop in blocks(shape):
        weight = adapter.embeddings[name][start:stop] if name in adapter.embeddings else base(start, stop)
        trained, spread = trained_rows(name, weight, adapter, slice(start, stop))
        fit.add(weight, trained, stored(start, stop), spread, base_unit)
    return fit


def trained_rows(name: str, weight: Tensor, adapter: AdapterDelta, rows: slice) -> tuple[Tensor, Tensor | float]:
    """What an adapter makes of rows of a base's weight, and the bound scale · |B|·|A| of its update's terms."""
    trained = adapter.whole[name][rows].reshape(weight.shape) if name in adapter.whole else weight
    if name in adapter.rows and trained.dim() > 1:
        trained = adapter.rows[name].put_into(trained, rows)
    update = adapter.low_rank.get(name)
    if update is None:
        return trained, 0.0
    after = update.added_to(trained, rows)
    if isinstance(update, LowRank):
        spread = abs(update.scale) * (update.b[rows].float().abs() @ update.a.float().abs())
        if update.magnitude is not None:  # the row's norm and its quotient are rounded, too
            spread = spread + 4 / 3 * after.abs()
        return after, spread
    a, b = update.a[rows].float().abs(), update.b[rows].float().abs()
    left, right = (a.mT, b.mT) if update.transposed else (b, a)
    return after, abs(update.scale) * torch.bmm(left, right)
