"""The ways in which a stage ends without success, and what the errors of libraries mean."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

USER_ERROR = 2  # exit code: something that the user can put right
TERMINATED = 75  # exit code: SIGTERM; unfinished, and the same command goes on (EX_TEMPFAIL)
INTERRUPTED = 130  # exit code: Ctrl-C, as shells report SIGINT

DISK_FULL = "the disk is full, or a file may not grow so large"
_DISK_FULL_NUMBERS = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
# Libraries that are not written in Python report a disk's errors only in words. Rust's (safetensors, tokenizers) give
# the number of the error; torch's zip writer and the C++ stream below it give none, and mostly mean a full disk.
_RUST_NUMBER = re.compile(r"\(os error (\d+)\)")
_TORCH_WRITER = re.compile(
    r"iostream error|PytorchStreamWriter failed|enforce fail at inline_container\.cc:\d+\] \. unexpected pos"
)
_OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "could not create a primitive",  # oneDNN
    "could not create a memory",
    "can't start new thread",
    "failed to map segment from shared object",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class UserError(Exception):
    """Something that the user can put right: one line that says what is wrong and what to run.

    Args:
        code: what kind of error it is, for programs that act on it, such as `no_server`; empty where none does.
    """

    def __init__(self, message: str = "", *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Terminated(BaseException):
    """SIGTERM: everything stops, and nothing is published. Like KeyboardInterrupt, not an error to be handled."""


def as_os_error(error: BaseException) -> OSError | None:
    """The OSError that a library reported in words while it wrote or read a file; None where it was no such error."""
    if isinstance(error, OSError):
        return error
    text = str(error)
    if match := _RUST_NUMBER.search(text):
        number = int(match[1])
        return OSError(number, DISK_FULL if number in _DISK_FULL_NUMBERS else os.strerror(number))
    return OSError(errno.ENOSPC, DISK_FULL) if _TORCH_WRITER.search(text) else None


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that the disk is full, or that a file must not grow any further."""
    os_error = as_os_error(error)
    return os_error is not None and os_error.errno in _DISK_FULL_NUMBERS


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise what libraries report in words about files as the OSError that it is.

    Raises:
        OSError: a file could not be written.
    """
    try:
        yield
    except Exception as error:
        os_error = None if isinstance(error, OSError | UserError) else as_os_error(error)
        if os_error is None:
            raise
        raise os_error from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine ran out of memory; torch, oneDNN and Python's threads say so in words only."""
    of_a_gpu = type(error).__name__ == "OutOfMemoryError"  # by name: this module must not load torch
    return isinstance(error, MemoryError) or of_a_gpu or any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def missing_package(error: BaseException) -> str | None:
    """What to run where this Python lacks a package that Lockstep needs; None for any other error."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or error.name.split(".")[0] == "lockstep":
        return None
    package = error.name.split(".")[0]
    return (
        f"{sys.executable} lacks the package {package}: run `make setup`, and start the scripts with .venv/bin/python"
    )


def report_missing_packages_in_one_line() -> None:
    """Let a script that still imports what it needs end in one line where this Python lacks a package.

    Later on `settings.cli.run` reports errors. Any other one keeps its traceback.
    """
    previous = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        message = missing_package(error)
        if message is None or os.environ.get("LOCKSTEP_DEBUG") == "1":
            previous(kind, error, traceback)
            return
        sys.stderr.write(f"error: {message}\n")
        raise SystemExit(USER_ERROR)  # with which Python then ends

    sys.excepthook = report
