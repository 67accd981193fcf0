"""The file of a batch's answers: one line for each question, in order; it appears when it is whole.

Until then answers are appended to `.NAME.partial` beside it as they come, in a form that any program can read, so that
a batch which was killed at any point goes on from there. `.NAME.done` records what the finished file answers, and
`.NAME.KEY.partial` keeps the unfinished answers of another batch until that one runs again.
"""

import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from lockstep import paths
from lockstep.artifacts import atomic, manifest
from lockstep.errors import UserError
from lockstep.text.unicode import printable

AnswerRecord = dict[str, Any]  # `row`, its number, and `error` where it has no answer


def key_of(parts: Any) -> str:
    """What identifies a batch: the hash of all that its answers depend on, as JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class BatchFile:
    """A batch on disk. Use it in a `with` block; rows may come in any order.

    Args:
        output: the finished file.
        key: what it answers, from `key_of`.
        rows: how many lines it will have.
        force: replace a finished file of another batch, or answer this one again.

    Attributes:
        done: numbers of the rows that have their answer or their error.
        finished: whether the output was there already, whole and without errors.
        news: what to tell the user about unfinished work that was there; empty where there was none.

    Raises:
        UserError: another program writes this file, or the output is not this batch's.
    """

    def __init__(self, output: Path, key: str, rows: int, force: bool = False) -> None:
        self.output, self.key, self.rows = output, key, rows
        self.partial, self.record = (output.with_name(f".{output.name}.{end}") for end in ("partial", "done"))
        self._offsets: dict[int, int] = {}  # row → where its line begins in the partial file, in bytes
        self.news, self._synced = "", 0.0
        self._lock = filelock.FileLock(output.with_name(f".{output.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise UserError(f"another batch is writing {paths.label(output)}: wait for it, or stop it") from error
        try:
            self._stream = self._opened(force)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "BatchFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream:
            self._stream.close()
        self._lock.release()

    @property
    def finished(self) -> bool:
        return self._stream is None

    @property
    def done(self) -> set[int]:
        return set(self._offsets)

    def add(self, row: AnswerRecord) -> None:
        """Keep a row: a kill right after this loses nothing, a power cut at most a second."""
        assert self._stream
        self._offsets[row["row"]] = self._stream.tell()
        self._stream.write(_line(row))
        self._stream.flush()
        if time.monotonic() - self._synced > 1:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def fill(self, work: Callable[[int], AnswerRecord], concurrency: int) -> Iterator[AnswerRecord]:
        """Make the records of the rows that are not done, and keep them; yields each once it is kept.

        Args:
            work: makes the record of a row from its number; several threads call it at once.

        Raises:
            What `work` raised first. No row is begun after that, and those that were begun are kept.
        """
        for record in _worked(work, [row for row in range(self.rows) if row not in self._offsets], concurrency):
            self.add(record)
            yield record

    def publish(self) -> None:
        """Write the output in order, and put it in its place in one step.

        Raises:
            UserError: a row is not done.
        """
        if missing := self.rows - len(self._offsets):
            raise UserError(f"{missing} of {self.rows} rows have not been asked: the same command goes on")
        digest = hashlib.sha256()
        with self.partial.open("rb") as source, atomic.replacing(self.output, "wb", encoding=None) as target:
            for number in range(self.rows):
                source.seek(self._offsets[number])
                line = source.readline()
                digest.update(line)
                target.write(line)
            new = digest.hexdigest()
            # A kill before the new file is in its place leaves the old one, which this batch may replace.
            old = manifest.sha256_of(self.output) if self.output.exists() else new
            record = {"key": self.key, "rows": self.rows, "sha256": new, "replaces": None if old == new else old}
            atomic.write_json(self.record, record)
        self.partial.unlink()

    def _opened(self, force: bool) -> BinaryIO | None:
        """The partial file, ready to be appended to; None where the output is finished."""
        unfinished = self._find_unfinished()
        states = ("sha256", "replaces") if unfinished else ("sha256",)
        if self.output.exists() and not force and not self._is_ours(*states):
            raise UserError(
                f"{paths.label(self.output)} answers other questions, or was made with another model or settings: "
                f"name another --output, or replace it with --force"
            )
        if unfinished:
            stream = self._resume()
            self.news = f"going on: {len(self._offsets)} of {self.rows} rows are done" if self._offsets else ""
            return stream
        answered: list[bytes] = []
        if self.output.exists() and not force:
            with self.output.open("rb") as lines:
                answered = [line for line in lines if "error" not in json.loads(line)]
        if self.partial.exists():
            self._put_aside()
        return self._begin(answered)

    def _find_unfinished(self) -> bool:
        """Whether there is unfinished work of this batch; it is in `partial` then."""
        if self.partial.exists() and _header(self.partial) == self.key:
            return True
        if not (kept := self._kept(self.key)).exists():
            return False
        if self.partial.exists():
            self._put_aside()
        kept.rename(self.partial)
        return True

    def _put_aside(self) -> None:
        """Keep another batch's unfinished answers under a name with its key."""
        if key := _header(self.partial):
            kept = self._kept(key)
            self.partial.replace(kept)
            self.news = f"starting afresh: {kept.name} keeps unfinished answers to other questions or settings"

    def _kept(self, key: str) -> Path:
        return self.output.with_name(f".{self.output.name}.{key[:16]}.partial")

    def _is_ours(self, *states: str) -> bool:
        """Whether the record says, under one of these keys, that the output as it is belongs to this batch.

        Args:
            states: `sha256`: the file that this batch published · `replaces`: the one that it was about to replace.
        """
        try:
            record = atomic.read_json(self.record)
            digests = [record[state] for state in states]
            return bool(record["key"] == self.key and manifest.sha256_of(self.output) in digests)
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # there is none, or a damaged one
            return False

    def _begin(self, answered: list[bytes]) -> BinaryIO | None:
        """A new partial file with the lines that are answered already; None where those are all."""
        with atomic.replacing(self.partial, "wb", encoding=None) as target:
            target.write(_line({"key": self.key}))
            target.writelines(answered)
        stream = self._resume()
        if len(self._offsets) == self.rows and self.output.exists():
            stream.close()
            self.partial.unlink()
            return None
        if self._offsets:
            self.news = f"asking {self.rows - len(self._offsets)} rows again that had no answer"
        return stream

    def _resume(self) -> BinaryIO:
        """The partial file, positioned after its last whole line; a line that a kill cut short is removed."""
        stream = self.partial.open("r+b")
        end = len(stream.readline())
        for line in stream:
            try:
                number = json.loads(line)["row"] if line.endswith(b"\n") else None
            except ValueError:
                number = None
            if number is None:
                break
            self._offsets[number] = end
            end += len(line)
        stream.seek(end)
        stream.truncate()
        return stream


def _worked(work: Callable[[int], AnswerRecord], rows: list[int], concurrency: int) -> Iterator[AnswerRecord]:
    """The records of rows, in the order in which threads finish them; see `BatchFile.fill`."""
    running = min(concurrency, len(rows))
    pending = iter(rows)
    results = queue.Queue[AnswerRecord | BaseException | None](running)  # a record, a failure, or a thread's end
    stop = threading.Event()

    def worker() -> None:
        try:
            for row in iter(lambda: None if stop.is_set() else next(pending, None), None):
                results.put({"row": row} | work(row))
        except BaseException as error:  # raised below, where the records are waited for
            stop.set()
            results.put(error)
        finally:
            results.put(None)

    # Daemon threads and no pool, whose threads would keep Ctrl-C waiting for the answers that are on their way.
    for _ in range(running):
        threading.Thread(target=worker, daemon=True).start()
    failure: BaseException | None = None
    while running:
        result = results.get()
        if result is None:
            running -= 1
        elif isinstance(result, BaseException):
            failure = failure or result
        else:
            yield result
    if failure:
        raise failure


def _line(value: Mapping[str, Any]) -> bytes:
    # half a character (a lone surrogate) becomes its JSON escape
    return (printable(json.dumps(value, ensure_ascii=False)) + "\n").encode()


def _header(partial: Path) -> str | None:
    """The key in a partial file's first line; None where not even that was written whole."""
    with partial.open("rb") as stream:
        try:
            return str(json.loads(stream.readline())["key"])
        except (ValueError, KeyError, TypeError):
            return None
