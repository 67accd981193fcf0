"""Rows of a checkpoint's tensors, read from its files as they are needed.

Files are read and not mapped: pages of a mapped file count as the process's memory until it is closed.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from lockstep import paths
from lockstep.errors import UserError
from lockstep.model import checkpoint_files
from lockstep.model.checkpoint_names import CheckpointNames, Group

DTYPES = {
    "BOOL": torch.bool, "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # by their names in safetensors files  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where a tensor stands.

    Attributes:
        offset: of its first byte in the file.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape[1:])


class TensorReader:
    """The tensors of a folder's safetensors files.

    Raises:
        UserError: a file is damaged, or holds a dtype that is not known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[str, Stored] = {}
        self._opened: dict[Path, int] = {}
        for file in checkpoint_files.files(folder):
            self.stored |= _header(file)

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._opened.values():
            os.close(descriptor)
        self._opened.clear()

    def whole(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        stored = self.stored[name]
        count = stored.shape[0] if stored.shape else 1
        return self.rows(name, 0, count).reshape(stored.shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """The rows from `start` to before `stop`, in the stored dtype. Raises UserError where the file is cut off."""
        stored = self.stored[name]
        if stored.file not in self._opened:
            self._opened[stored.file] = os.open(stored.file, os.O_RDONLY)
        size = (stop - start) * stored.row_bytes
        content = _read(self._opened[stored.file], size, stored.offset + start * stored.row_bytes)
        if len(content) != size:
            raise UserError(f"{paths.label(stored.file)} is cut off: it does not hold all of {name}")
        if not size:
            return torch.empty((stop - start, *stored.shape[1:]), dtype=stored.dtype)
        return torch.frombuffer(content, dtype=stored.dtype).reshape(stop - start, *stored.shape[1:])


class ParameterReader:
    """The parameters of a checkpoint by their names in memory, whatever its files call them and however they join them.

    Attributes:
        shapes: of all that are loaded.
    """

    def __init__(self, names: CheckpointNames, reader: TensorReader) -> None:
        self.names, self.reader, self.shapes = names, reader, names.shapes
        self._group: Group | None = None
        self._parameters: dict[str, Tensor] = {}

    def source(self, parameter: str) -> str | None:
        """The parameter, or the one that it is tied to where the files hold only that; None where neither is there."""
        if parameter in self.shapes:
            return parameter
        pairs = [pair for pair in self.names.tied.items() if parameter in pair]
        others = [other for pair in pairs for other in pair if other in self.shapes]
        return others[0] if others else None

    def dtype(self, parameter: str) -> torch.dtype:
        return self.reader.stored[self.names.group_of(parameter).tensors[0]].dtype

    def rows(self, parameter: str) -> Callable[[int, int], Tensor]:
        """A function that gives rows of a parameter, of one with none as the only row."""
        group = self.names.group_of(parameter)
        if group.is_plain:
            name = group.tensors[0]
            return lambda start, stop: self.reader.rows(name, start, stop)
        if group is not self._group:  # a layer's experts are read once for all of its parameters
            self._parameters = {}
            self._group = group
            self._parameters = group.to_memory({name: self.reader.whole(name) for name in group.tensors})
        parameter_tensor = self._parameters[parameter]
        return lambda start, stop: parameter_tensor[start:stop]


def _read(descriptor: int, size: int, offset: int) -> bytearray:
    """At most `size` bytes; one call gives 2 GiB at most."""
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        count = os.preadv(descriptor, [view[done : done + 2**30]], offset + done)
        if not count:
            break
        done += count
    return content if done == size else content[:0]


def _header(file: Path) -> dict[str, Stored]:
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        return {
            name: Stored(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{paths.label(file)} is no safetensors file, or a damaged one ({error})") from error
