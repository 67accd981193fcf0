"""A model's safetensors files: which they are, what they hold, and how they are written piece by piece.

A file is written from its beginning to its end, so no more than a few pieces of it are ever in memory.
"""

import json
import os
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError

NAMES = {
    torch.bool: "BOOL", torch.int8: "I8", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.bfloat16: "BF16", torch.float32: "F32",
}  # of dtypes, in the format  # fmt: skip
CHUNK = 2**24  # bytes in one write; whole tensors at once are much slower
PENDING = 2  # pieces that wait to be written

Sums = dict[str, dict[str, int]]  # file → tensor → crc32 of its bytes


class Writer:
    """A safetensors file that grows: pieces are written while the next ones are computed.

    Args:
        tensors: shape and dtype of each, in the order in which they will be written.

    Attributes:
        sums: crc32 of the bytes of each tensor, whole once the block is left.
    """

    def __init__(self, file: Path, tensors: Mapping[str, tuple[Sequence[int], torch.dtype]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (shape, dtype) in tensors.items():
            start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # readers may map tensors where they begin
        self.sums, self._left = dict[str, int](), dict(tensors)
        self._stream = file.open("wb", buffering=0)
        self._stream.write(len(text).to_bytes(8, "little") + text)
        self._pool, self._pending = ThreadPoolExecutor(1), deque[Future[None]]()

    def write(self, name: str, pieces: Iterable[Tensor], finite: bool = True) -> None:
        """The next tensor, from its rows in order; cast to its dtype in the file.

        Args:
            finite: whether infinities are an error.

        Raises:
            UserError: values are not finite.
            OSError: the disk is full.
        """
        if name != next(iter(self._left)):
            raise ValueError(f"{name} is not the next tensor")
        shape, dtype = self._left.pop(name)
        left = torch.Size(shape).numel()
        for piece in pieces:
            cast = piece.to(dtype).contiguous()
            if finite and dtype.is_floating_point and not torch.stack(torch.aminmax(cast)).isfinite().all():
                raise UserError(f"{name} would hold values that are not finite: what was trained is damaged")
            left -= cast.numel()
            if len(self._pending) == PENDING:
                self._pending.popleft().result()
            self._pending.append(self._pool.submit(self._append, name, _bytes(cast)))
        if left:
            raise ValueError(f"{name} has another shape than was announced")

    def _append(self, name: str, bytes_: memoryview) -> None:
        self.sums[name] = zlib.crc32(bytes_, self.sums.get(name, 0))
        while bytes_:
            bytes_ = bytes_[self._stream.write(bytes_[:CHUNK]) :]

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        with self._stream:
            for written in self._pending if kind is None else ():
                written.result()


def write_index(folder: Path, sums: Sums, size: int) -> None:
    """The index of several files.

    Args:
        size: of all tensors, in bytes.
    """
    weight_map = {tensor: file for file, tensors in sums.items() for tensor in tensors}
    atomic.write_json(folder / filenames.WEIGHTS_INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def verify(folder: Path, sums: Sums) -> None:
    """Read files back, from the disk itself where the system can forget what it has in memory.

    Raises:
        UserError: a file does not hold what was written.
    """
    for name, tensors in sums.items():
        _forget(folder / name)
        try:
            with safe_open(folder / name, framework="pt") as file:
                same = set(file.keys()) == set(tensors) and all(
                    zlib.crc32(_bytes(file.get_tensor(tensor))) == written for tensor, written in tensors.items()
                )
        except SafetensorError:
            same = False
        if not same:
            raise UserError(f"{name} does not read back as it was written: check the disk, run again")


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's memory, in row order."""
    flat = tensor.contiguous().flatten().view(torch.uint8)
    return flat.numpy().data


def _forget(file: Path) -> None:
    if sys.platform == "linux":
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
