"""Hashes of a checkpoint's tensors, whatever files they are spread over: what a bundle has instead of weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lockstep import paths
from lockstep.errors import UserError
from lockstep.model import checkpoint_files
from lockstep.processes import busy

BLOCK = 2**23  # bytes that are read at once
LARGEST_HEADER = 100_000_000  # bytes, as safetensors' own reader takes


class TensorRecord(BaseModel):
    """A tensor as it lies on disk; `sha256` is of its bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dtype: str
    shape: tuple[int, ...]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def hashes(folder: Path) -> dict[str, TensorRecord]:
    """Every tensor of a folder's safetensors files, by name. Memory stays at a few MB, whatever their size.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        files = list(checkpoint_files.files(folder))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{paths.label(folder)}: the index of its weights is damaged") from error
    records: dict[str, TensorRecord] = {}
    for file in busy.steps(files, f"hashing the tensors of {paths.label(folder)}", unit="files"):
        if file.parent != folder:
            raise UserError(f"{paths.label(folder)}: the index of its weights names files outside of it")
        try:
            records |= _of_file(file)
        except OSError as error:
            raise UserError(f"{paths.label(file)} cannot be read: {error.strerror}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{paths.label(file)} is no safetensors file, or is damaged") from error
    return records


def _of_file(file: Path) -> dict[str, TensorRecord]:
    records = {}
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError("header")
        entries: dict[str, Any] = json.loads(stream.read(size))
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            stream.seek(8 + size + begin)
            digest, left = hashlib.sha256(), end - begin
            while left > 0:
                block = stream.read(min(BLOCK, left))
                if not block:
                    raise ValueError("cut off")
                digest.update(block)
                left -= len(block)
            records[name] = TensorRecord(dtype=entry["dtype"], shape=entry["shape"], sha256=digest.hexdigest())
    return records
