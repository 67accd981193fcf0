"""A checkpoint's safetensors files: which they are, and what their headers say. No tensor is read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lockstep.artifacts import atomic, filenames

BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # of the format's dtypes; all others have one byte  # fmt: skip


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a checkpoint, as its file's header describes it.

    Attributes:
        dtype: as the format names it: BF16.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * BYTES.get(self.dtype, 1)


def files(folder: Path) -> Iterator[Path]:
    """The model's safetensors files, those of its index or the only one."""
    index = folder / filenames.WEIGHTS_INDEX
    if index.exists():
        names = set(atomic.read_json(index)["weight_map"].values())
        yield from (folder / name for name in sorted(names))
    else:
        yield from sorted(folder.glob("*.safetensors"))


def tensors_of(folder: Path) -> dict[str, FileTensor]:
    """Every tensor of a checkpoint by its name, in the order of its files."""
    tensors: dict[str, FileTensor] = {}
    for file in files(folder):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            tensors[name] = FileTensor(file, tuple(entry["shape"]), entry["dtype"])
    return tensors
