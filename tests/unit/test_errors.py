"""A full disk is recognised in whatever words a library reports it."""

import errno
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from lockstep.errors import DISK_FULL, UserError, disk_errors, is_full_disk

WEIGHTS = {"a": torch.zeros(100_000)}
WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": lambda file: torch.save(WEIGHTS, file),
    "torch, less than a block": lambda file: torch.save({"a": torch.zeros(10)}, file),
    "safetensors": lambda file: save_file(WEIGHTS, file),
    "tokenizers": lambda file: tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(file)),
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files may hold a hundred bytes; what the kernel reports then is what it reports on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("library", WRITERS)
def test_each_librarys_full_disk_is_an_os_error(library: str, tmp_path: Path, small_files: None) -> None:
    with pytest.raises(OSError, match=DISK_FULL), disk_errors():
        WRITERS[library](tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENOSPC, errno.EDQUOT])
def test_an_error_number_is_enough(number: int) -> None:
    assert is_full_disk(OSError(number, "any words"))
    assert is_full_disk(RuntimeError(f"any words (os error {number})"))


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (ValueError("the disk is full"), UserError("(os error 28)"), OSError(errno.EACCES, "no")):
        with pytest.raises(type(error)) as caught, disk_errors():
            raise error
        assert caught.value is error
    with pytest.raises(OSError, match="Input/output error"), disk_errors():
        raise RuntimeError("I/O error (os error 5)")
    damaged = tmp_path / "weights.pt"
    damaged.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(RuntimeError) as unreadable:
        torch.load(damaged)
    assert not is_full_disk(unreadable.value)  # reading it failed, in the same module of torch's
