"""All that stage 01 writes while rows pass: the splits, what was dropped or changed, and the figures about them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from lockstep.artifacts import filenames
from lockstep.data import arrow_writer, preview
from lockstep.data.cleaning import Change
from lockstep.data.encoding import Sample
from lockstep.data.ledger import Ledger
from lockstep.data.quality_report import Quality
from lockstep.data.records import Reject
from lockstep.data.splits import SPLITS
from lockstep.settings.schema import Data


class Books:
    """Takes every row once, kept or dropped.

    Args:
        work: the folder for splits, rejects.jsonl and changes.jsonl.
    """

    def __init__(self, work: Path, data: Data) -> None:
        self.ledger, self.picks, self.quality = Ledger(SPLITS), preview.Picks(), Quality(SPLITS, data)
        self.splits = {split: arrow_writer.Split(work / split) for split in SPLITS}
        self.rejects = (work / filenames.REJECTS).open("w", encoding="utf-8")
        self.changes = (work / filenames.CHANGES).open("w", encoding="utf-8")

    def drop(self, reject: Reject) -> None:
        """Record a row that is not trained on."""
        self.ledger.drop(reject.file, reject.reason, reject)
        self.picks.reject(reject)
        written = asdict(reject)
        del written["keys"]  # they stand in its text
        _write_line(self.rejects, written)

    def keep(self, split: str, samples: list[Sample], changes: Sequence[Change]) -> None:
        """Write the samples of one row, and what was changed in it."""
        row = samples[0].row
        changes = [*changes, *(Change("tokenizer", *change) for change in samples[0].respelled)]
        self.ledger.keep(split, samples, [change.step for change in changes])
        self.quality.add(row, split, self.splits[split].rows)
        self.splits[split].write(samples)
        for change in changes:
            _write_line(self.changes, {"file": row.record.file, "line": row.record.line} | asdict(change))
        for sample in samples:
            self.picks.keep(sample, split, len(samples), changes)

    def line(self, split: str, place: int) -> dict[str, Any]:
        """Sample number `place` of a split, once the books are closed."""
        return self.splits[split].line(place)

    def close(self) -> None:
        """Finish all files. Raises OSError where the disk is full."""
        self.rejects.close()
        self.changes.close()
        for split in self.splits.values():
            split.close()


def _write_line(stream: IO[str], value: Any) -> None:
    stream.write(json.dumps(value, ensure_ascii=False) + "\n")
