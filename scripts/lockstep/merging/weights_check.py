"""The weights of merged/ or base/, made again from base and adapter and compared with what lies on disk, all of them.

A manifest says that a folder is as its stage left it. It cannot say that its stage, or whoever wrote it, was right.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lockstep.errors import UserError
from lockstep.merging import safetensors_stream
from lockstep.merging.merge import Merge
from lockstep.model import checkpoint_files
from lockstep.model.checkpoint_files import FileTensor

# Another processor adds in another order: that moves a value across the border of two numbers of bfloat16 now and
# then, in about one of 10,000 elements. More of them are no rounding.
ROUNDED_SHARE = 1e-3
# A tensor that this device quantizes otherwise than the one that trained: as far as a tensor, and a row of it, may be
# from the one that is made here, by the root of the sums of squares. One step of NF4 in 0.01 % of the elements: 0.002.
REQUANTIZED, REQUANTIZED_ROW = 0.01, 0.1


@dataclass
class Account:
    """What was compared.

    Attributes:
        tensors, elements: on disk.
        rounded: elements that are the next number of their dtype.
        requantized: tensors that this device quantizes otherwise than the one that trained.
        wrong: name of each tensor that is another → how it differs.
    """

    tensors: int = 0
    elements: int = 0
    rounded: int = 0
    requantized: int = 0
    wrong: dict[str, str] = field(default_factory=dict)


def compare(merge: Merge, folder: Path) -> Account:
    """Make every tensor of a merge again, a block of rows at a time, and compare it with the folder's.

    Args:
        merge: its dequantizer, if it has one, is not strict.

    Raises:
        UserError: what is merged is damaged, or the folder's files cannot be read.
    """
    account = Account()
    there = checkpoint_files.tensors_of(folder)
    expected = {name for tensors in merge.files.values() for name in tensors}
    account.wrong |= dict.fromkeys(sorted(expected - there.keys()), "is missing")
    account.wrong |= dict.fromkeys(sorted(there.keys() - expected), "does not belong there")
    for shard, name, blocks in merge.pieces():
        if name not in there:
            continue
        account.tensors += 1
        shape, dtype = merge.files[shard][name]
        if difference := _kind_difference(there[name], tuple(shape), dtype):
            account.wrong[name] = difference
            continue
        distance = _distance(there[name].file, name, blocks, dtype)
        account.elements += distance.elements
        requantized = bool(merge.dequantizer and merge.dequantizer.others & merge.sources(name))
        if distance.is_rounding:
            account.rounded += distance.rounded
        elif requantized and distance.is_requantization:
            account.requantized += 1
        else:
            account.wrong[name] = distance.words
    return account


@dataclass
class _Distance:
    """How far a tensor on disk is from the one that is expected.

    Attributes:
        rounded, further: elements that are the next number of their dtype, and those that are none of the two.
        largest: of all absolute differences.
        squares: sums of the squares of the difference and of what is expected.
        worst_row: largest root of the quotient of these two, of a row.
    """

    elements: int = 0
    rounded: int = 0
    further: int = 0
    largest: float = 0.0
    squares: tuple[float, float] = (0.0, 0.0)
    worst_row: float = 0.0

    @property
    def is_rounding(self) -> bool:
        return not self.further and self.rounded <= max(1, ROUNDED_SHARE * self.elements)

    @property
    def is_requantization(self) -> bool:
        difference, expected = self.squares
        return difference <= REQUANTIZED**2 * expected and self.worst_row <= REQUANTIZED_ROW

    @property
    def words(self) -> str:
        different = self.rounded + self.further
        return f"differs in {different:,} of {self.elements:,} elements, by up to {self.largest:.3g}"

    def add(self, expected: Tensor, actual: Tensor) -> None:
        """Two blocks of rows of one shape and dtype."""
        self.elements += expected.numel()
        if torch.equal(expected, actual):
            return
        if not expected.dtype.is_floating_point:
            self.further += int((expected != actual).sum())
            return
        left, right = expected.float(), actual.float()
        gap = (left - right).abs().nan_to_num(torch.inf)
        scale = torch.maximum(left.abs(), right.abs())
        # where a sum almost cancels, its error is that of its terms
        noise = 1e-5 * left.square().mean().sqrt()
        near = gap <= torch.finfo(expected.dtype).eps * scale + noise
        self.rounded += int((near & (gap > 0)).sum())
        self.further += int((~near).sum())
        self.largest = max(self.largest, float(gap.max()))
        rows = [part.reshape(len(part) if part.dim() > 1 else 1, -1) for part in (gap, left)]
        errors, sizes = (part.square().sum(1) for part in rows)
        self.squares = self.squares[0] + float(errors.sum()), self.squares[1] + float(sizes.sum())
        self.worst_row = max(self.worst_row, float((errors / sizes.clamp_min(1e-30)).max().sqrt()))


def _kind_difference(tensor: FileTensor, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    expected = safetensors_stream.NAMES[dtype]
    if (tensor.shape, tensor.dtype) == (shape, expected):
        return ""
    return f"is {tensor.dtype} of shape {list(tensor.shape)}, and would be {expected} of shape {list(shape)}"


def _distance(file: Path, name: str, blocks: Iterable[Tensor], dtype: torch.dtype) -> _Distance:
    distance = _Distance()
    start = 0
    try:
        with safe_open(file, framework="pt") as opened:
            for block in blocks:
                expected = block.to(dtype)
                if expected.dim() == 0:
                    actual = opened.get_tensor(name)
                else:
                    actual = opened.get_slice(name)[start : start + len(expected)]
                    start += len(expected)
                distance.add(expected, actual)
    except SafetensorError as error:
        raise UserError(f"{file.name} cannot be read ({error})") from error
    return distance
