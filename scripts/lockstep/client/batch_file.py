"""The file of a batch's answers: one line for each question, in order, and there only when whole.

Answers are kept in `.NAME.partial` beside it as they come, so that a batch which was killed at any
point goes on where it was. `.NAME.done` says what a finished file is an answer to, and
`.NAME.KEY.partial` keeps what was unfinished when another batch came, until its own comes again.
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

AnswerRecord = dict[str, Any]  # with `row`, its number, and `error` where it has no answer


def key_of(parts: Any) -> str:
    """What identifies a batch: the hash of all that its answers depend on, as JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class BatchFile:
    """A batch on disk. Use it in a `with` block; rows may come in any order.

    Args:
        output: the finished file.
        key: what it answers, from `key_of`.
        rows: how many lines it will have.
        force: replace a finished file of another batch, or answer this one anew.

    Attributes:
        done: numbers of the rows that have their answer or their error.
        finished: whether the output was there already, whole and without errors.
        news: what the user should know of what was found, or nothing.

    Raises:
        UserError: another program writes this file, or the output holds what this batch did not make.
    """

    def __init__(self, output: Path, key: str, rows: int, force: bool = False) -> None:
        self.output, self.key, self.rows = output, key, rows
        self.partial, self.record = (output.with_name(f".{output.name}.{end}") for end in ("partial", "done"))
        self._places: dict[int, int] = {}  # row → where its line begins in the partial file
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
        return set(self._places)

    def add(self, row: AnswerRecord) -> None:
        """Keep a row; a kill right after loses nothing, a power cut at most a second."""
        assert self._stream
        self._places[row["row"]] = self._stream.tell()
        self._stream.write(_line(row))
        self._stream.flush()
        if time.monotonic() - self._synced > 1:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def fill(self, work: Callable[[int], AnswerRecord], concurrency: int) -> Iterator[AnswerRecord]:
        """Have the rows that are not done worked on and kept; yields each when it is.

        Args:
            work: makes the record of a row's number; several threads call it at once.

        Raises:
            What `work` raised first. No row is begun after that, and those that were are kept.
        """
        rows = [number for number in range(self.rows) if number not in self._places]
        concurrency = min(concurrency, len(rows))
        todo, found = iter(rows), queue.Queue[AnswerRecord | BaseException | None](concurrency)
        stop = threading.Event()

        def worker() -> None:
            try:
                for number in iter(lambda: None if stop.is_set() else next(todo, None), None):
                    found.put({"row": number} | work(number))
            except BaseException as error:  # is raised where the rows are waited for
                stop.set()
                found.put(error)
            finally:
                found.put(None)

        # not a pool: its threads would keep Ctrl-C waiting for the answers that are on their way
        for _ in range(concurrency):
            threading.Thread(target=worker, daemon=True).start()
        failure = None
        while concurrency:
            result = found.get()
            if result is None:
                concurrency -= 1
            elif isinstance(result, BaseException):
                failure = failure or result
            else:
                self.add(result)
                yield result
        if failure:
            raise failure

    def publish(self) -> None:
        """Write the output in order and put it in its place.

        Raises:
            UserError: a row is missing.
        """
        if missing := self.rows - len(self._places):
            raise UserError(f"{missing} of {self.rows} rows have not been asked: the same command goes on")
        digest = hashlib.sha256()
        with self.partial.open("rb") as source, atomic.replacing(self.output, "wb", encoding=None) as target:
            for number in range(self.rows):
                source.seek(self._places[number])
                line = source.readline()
                digest.update(line)
                target.write(line)
            made = digest.hexdigest()
            # a kill before the new file is in its place must leave one that this batch may replace
            old = manifest.sha256_of(self.output) if self.output.exists() else made
            record = {"key": self.key, "rows": self.rows, "sha256": made, "replaces": None if old == made else old}
            atomic.write_json(self.record, record)
        self.partial.unlink()

    def _opened(self, force: bool) -> BinaryIO | None:
        """The partial file, ready to be added to; None where the output is finished."""
        found = self._found()
        if self.output.exists() and not force and not self._is_ours("sha256", *(["replaces"] if found else [])):
            raise UserError(
                f"{paths.label(self.output)} answers other questions, or was made with another model or settings: "
                f"name another --output, or replace it with --force"
            )
        if found:
            stream = self._resumed()
            self.news = f"going on: {len(self._places)} of {self.rows} rows are done" if self._places else ""
            return stream
        answered: list[bytes] = []
        if self.output.exists() and not force:
            with self.output.open("rb") as lines:
                answered = [line for line in lines if "error" not in json.loads(line)]
        if self.partial.exists():
            self._put_aside()
        return self._begun(answered)

    def _found(self) -> bool:
        """Whether unfinished work of this batch is there; it is in its place then."""
        if self.partial.exists() and _header(self.partial) == self.key:
            return True
        if not (kept := self._kept(self.key)).exists():
            return False
        if self.partial.exists():
            self._put_aside()
        kept.rename(self.partial)
        return True

    def _put_aside(self) -> None:
        """Keep another batch's unfinished answers under its own name."""
        if key := _header(self.partial):
            kept = self._kept(key)
            self.partial.replace(kept)
            self.news = f"starting afresh: {kept.name} keeps unfinished answers to other questions or settings"

    def _kept(self, key: str) -> Path:
        return self.output.with_name(f".{self.output.name}.{key[:16]}.partial")

    def _is_ours(self, *states: str) -> bool:
        """Whether the output is what this batch made, unchanged, or was about to replace, by these keys of the record."""
        try:
            record = atomic.read_json(self.record)
            known = [record[state] for state in states]
            return bool(record["key"] == self.key and manifest.sha256_of(self.output) in known)
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # there is none, or a damaged one
            return False

    def _begun(self, answered: list[bytes]) -> BinaryIO | None:
        """A new partial file that holds what is answered already."""
        with atomic.replacing(self.partial, "wb", encoding=None) as made:
            made.write(_line({"key": self.key}))
            made.writelines(answered)
        stream = self._resumed()
        if len(self._places) == self.rows and self.output.exists():
            stream.close()
            self.partial.unlink()
            return None
        if self._places:
            self.news = f"asking {self.rows - len(self._places)} rows again that had no answer"
        return stream

    def _resumed(self) -> BinaryIO:
        """The partial file behind its last whole line; what a kill tore off is cut away."""
        stream = self.partial.open("r+b")
        end = len(stream.readline())
        for line in stream:
            try:
                number = json.loads(line)["row"] if line.endswith(b"\n") else None
            except ValueError:
                number = None
            if number is None:
                break
            self._places[number] = end
            end += len(line)
        stream.seek(end)
        stream.truncate()
        return stream


def _line(value: Mapping[str, Any]) -> bytes:
    # half a character (a lone surrogate) becomes its JSON escape
    return (printable(json.dumps(value, ensure_ascii=False)) + "\n").encode()


def _header(partial: Path) -> str | None:
    """The key of a partial file, or None where not even that was written whole."""
    with partial.open("rb") as stream:
        try:
            return str(json.loads(stream.readline())["key"])
        except (ValueError, KeyError, TypeError):
            return None
