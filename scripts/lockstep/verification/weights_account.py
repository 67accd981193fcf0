"""Every tensor of a merged folder held against base and adapter: what each of them is.

Files are read in blocks of rows. Only where a tensor is neither the trained nor the base's is it read as a whole, to be
quantized to NF4 and back as QLoRA does it: most of the memory is then its float32 copies.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lockstep.merging import dequantizer
from lockstep.model.adapter_delta import EMBEDDINGS, AdapterDelta
from lockstep.model.merge_plan import MergePlan
from lockstep.settings.schema import Quantization
from lockstep.verification import weight_fits
from lockstep.verification.tensor_reader import ParameterReader
from lockstep.verification.weight_fits import Fit, Rows

TRAINED, BASE, SCALED, OTHER, MISSING, UNSEEN = "trained", "base", "scaled", "other", "missing", "unseen"
# NF4 moves a weight by about 9 % (root of the mean square); with outliers by more.
NF4_ERROR = (0.02, 0.5)
MOST_TRIES = 4  # tensors that are quantized in each way before none of them is taken to be right
VARIANTS = tuple(
    (dtype, Quantization(bnb_4bit_use_double_quant=double))
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for double in (True, False)
)


@dataclass(frozen=True)
class Standing:
    """What one tensor is.

    Attributes:
        kind: TRAINED; BASE, untouched; SCALED, by `scale`; OTHER; MISSING; UNSEEN: what training changed is smaller
            than rounding, so trained and base are the same here.
        touched: whether the adapter changes it.
        dequantized: whether that is so on NF4 weights and not on the original ones.
        why: in words, of OTHER.
    """

    kind: str
    touched: bool
    fit: Fit = field(default_factory=Fit)
    dequantized: bool = False
    scale: float = 1.0
    why: str = ""


def standings(plan: MergePlan, base: ParameterReader, stored: ParameterReader) -> Iterator[tuple[str, Standing]]:
    """Each parameter's name and what it is, of base and merged folder together."""
    quantized = _Quantized()
    known = {*plan.shapes, *plan.parted}
    extra = [name for name in stored.shapes if name not in known]
    for name in (*plan.shapes, *extra):
        touched = name in plan.adapter.names
        of_base, there = base.source(plan.parted.get(name, name)), stored.source(name)
        if there is None:
            yield name, Standing(MISSING, touched, why="is missing")
        elif of_base is None:
            yield name, Standing(OTHER, touched, why="is not in the base")
        else:
            expected = tuple(plan.shapes.get(name, base.shapes[of_base]))
            shape = stored.shapes[there]
            if shape != expected and not _has_more_rows(name, shape, expected):
                why = f"is {list(shape)}, and would be {list(expected)}"
                yield name, Standing(OTHER, touched, why=why)
            else:
                yield name, _standing(name, plan.adapter, expected, (base, of_base), (stored, there), quantized)


def _has_more_rows(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a tool made an embedding or a head longer, for tokens that it added; what it had is compared."""
    return name.endswith(EMBEDDINGS) and shape[1:] == expected[1:] and shape[0] > expected[0]


def _standing(
    name: str,
    adapter: AdapterDelta,
    shape: tuple[int, ...],
    base: tuple[ParameterReader, str],
    stored: tuple[ParameterReader, str],
    quantized: "_Quantized",
) -> Standing:
    dtypes = base[0].dtype(base[1]), stored[0].dtype(stored[1])
    rows, there = base[0].rows(base[1]), stored[0].rows(stored[1])
    touched = name in adapter.names
    if not (dtypes[0].is_floating_point and dtypes[1].is_floating_point):
        same = all(torch.equal(rows(*block), there(*block)) for block in weight_fits.blocks(shape))
        return Standing(BASE if same else OTHER, touched, why="" if same else "holds other numbers")
    unit = weight_fits.base_unit(*dtypes)
    fit = weight_fits.measure(name, shape, rows, there, adapter, unit)
    standing = _told(fit, touched)
    if standing.kind == OTHER and len(shape) > 1 and not fit.not_finite and _like_nf4(fit):
        for restored in quantized.candidates(name, shape, rows):
            fit = weight_fits.measure(name, shape, restored, there, adapter, unit)
            other = _told(fit, touched, dequantized=True)
            if other.kind != OTHER:
                quantized.confirm()
                return other
    if standing.kind == OTHER:
        return Standing(OTHER, touched, standing.fit, why=_coarser(there, shape) or standing.why)
    return standing


def _told(fit: Fit, touched: bool, dequantized: bool = False) -> Standing:
    """What a tensor is by what was measured of it."""
    is_trained = fit.is_requantized if dequantized else fit.is_trained
    is_base = fit.is_requantized_base if dequantized else fit.is_base
    if not touched:
        kind = BASE if is_base else OTHER
    elif is_trained:
        kind = TRAINED if fit.is_visible else UNSEEN
    elif is_base:
        kind = BASE
    else:
        kind = SCALED if fit.is_scaled else OTHER
    different = fit.outside if touched else fit.outside_base
    why = f"differs in {different:,} of {fit.elements:,} elements"
    if fit.not_finite:
        why = f"holds {fit.not_finite:,} values that are not finite"
    return Standing(kind, touched, fit, dequantized, fit.scale if touched else 1.0, why if kind == OTHER else "")


def _like_nf4(fit: Fit) -> bool:
    """Whether a tensor is about as far from the trained one, or from the base's, as NF4 moves a weight."""
    distance = min(fit.residual, fit.gg, fit.gg - fit.scale * fit.gd)
    return bool(fit.size) and NF4_ERROR[0] <= (distance / fit.size) ** 0.5 <= NF4_ERROR[1]


class _Quantized:
    """A base's weights as QLoRA computed with them: which of the usual ways it was shows at the first tensors."""

    def __init__(self) -> None:
        self._known: tuple[torch.dtype, Quantization] | None = None
        self._tried: tuple[torch.dtype, Quantization] | None = None
        self._tries = 0

    def candidates(self, name: str, shape: tuple[int, ...], rows: Rows) -> Iterator[Rows]:
        """The rows of a weight, in each way that it may have been quantized."""
        if self._known is None and self._tries >= MOST_TRIES:
            return
        self._tries += 1
        weight = rows(0, shape[0])
        for variant in (self._known,) if self._known else VARIANTS:
            self._tried = variant
            restored = dequantizer.round_trip(weight, variant[0], variant[1], "cpu")
            yield _rows_of(restored)

    def confirm(self) -> None:
        """Note that the last candidate was right."""
        self._known = self._tried


def _rows_of(tensor: Tensor) -> Rows:
    return lambda start, stop: tensor[start:stop]


def _coarser(rows: Rows, shape: tuple[int, ...]) -> str:
    """In words, that a weight was rounded to few bits; empty where it was not. Its first rows tell."""
    if len(shape) < 2:
        return ""
    block = rows(0, min(shape[0], 8)).float().reshape(-1, shape[-1])
    if block.shape[1] % 64 == 0 and all(len(part.unique()) <= 16 for part in block.reshape(-1, 64)):
        return "was rounded to 4 bits"
    if block.shape[1] >= 1024 and all(len(row.unique()) <= 256 for row in block):
        return "was rounded to 8 bits"
    return ""
