"""The ways in which a stage ends without success."""

import re

USER_ERROR = 2  # exit code: something that the user can put right
TERMINATED = 75  # exit code: SIGTERM; unfinished, and the same command goes on (EX_TEMPFAIL)
INTERRUPTED = 130  # exit code: Ctrl-C, as shells report SIGINT


class UserError(Exception):
    """Something that the user can put right: one line that says what is wrong and what to run."""


class Terminated(BaseException):
    """SIGTERM: everything stops, and nothing is published. Like KeyboardInterrupt no error to be handled."""


def is_full_disk(error: BaseException) -> bool:
    """Whether a library of Rust's met a full disk, or a file that may not grow: it says so only in words."""
    return bool(re.search(r"\(os error (27|28|122)\)", str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had no memory left; torch, oneDNN, Python's threads and imports say so only in words."""
    words = (
        "can't allocate memory", "could not create a primitive", "could not create a memory", "can't start new thread",
        "failed to map segment from shared object", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    )  # fmt: skip
    of_a_gpu = type(error).__name__ == "OutOfMemoryError"  # by name: this module must not load torch
    return isinstance(error, MemoryError) or of_a_gpu or any(text in str(error) for text in words)
