"""What became of every line: kept, or dropped with a reason. The sums always match."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lockstep.data.collator import IGNORE
from lockstep.data.encoding import Sample
from lockstep.data.records import BROKEN
from lockstep.settings.schema import Data

# Sound rows that the settings leave out, and empty lines, say nothing against a file.
HARMLESS = ("blank", "duplicate", "near_duplicate", "in_two_splits")


@dataclass
class Account:
    """One file's lines (JSONL) or elements (arrays, tables).

    Attributes:
        truncated: kept rows whose prompt was cut, and the tokens cut.
        changed: kept rows that a cleaning step changed, by step.
        per_turn: kept rows that became one sample a turn, and those samples.
    """

    lines: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=lambda: Counter(rows=0, tokens=0))
    changed: Counter[str] = field(default_factory=Counter)
    per_turn: Counter[str] = field(default_factory=lambda: Counter(rows=0, samples=0))

    def as_json(self) -> dict[str, Any]:
        if self.lines != self.kept + sum(self.dropped.values()):
            raise AssertionError(f"the ledger does not add up: {self}")
        return {name: dict(v) if isinstance(v, Counter) else v for name, v in vars(self).items()}


class Ledger:
    """Accounts by file, and sums by split."""

    def __init__(self, splits: Sequence[str]) -> None:
        self.files: dict[str, Account] = defaultdict(Account)
        self.splits = {split: Counter(rows=0, tokens=0, supervised_tokens=0) for split in splits}
        self.lengths: Counter[int] = Counter()  # samples by their length in tokens

    def drop(self, file: str, reason: str) -> None:
        account = self.files[file]
        account.lines += 1
        account.dropped[reason] += 1

    def keep(self, split: str, samples: Sequence[Sample], changed: Sequence[str]) -> None:
        account = self.files[samples[0].row.record.file]
        account.lines += 1
        account.kept += 1
        account.changed.update(set(changed))
        cut = sum(sample.cut for sample in samples)
        account.truncated.update(rows=int(cut > 0), tokens=cut)
        if len(samples) > 1:
            account.per_turn.update(rows=1, samples=len(samples))
        for sample in samples:
            size = len(sample.input_ids)
            supervised = size - sample.labels.count(IGNORE)
            self.splits[split].update(rows=1, tokens=size, supervised_tokens=supervised)
            self.lengths[size] += 1

    def percentile(self, share: float) -> int:
        """The smallest length that at least this share of samples does not exceed; 0 for none."""
        enough, passed = share * self.lengths.total(), 0
        for length in sorted(self.lengths):
            passed += self.lengths[length]
            if passed >= enough:
                return length
        return 0

    def as_json(self) -> dict[str, Any]:
        return {
            "files": {name: account.as_json() for name, account in sorted(self.files.items())},
            "splits": {split: dict(counts) for split, counts in self.splits.items()},
            "lengths": {
                "p50": self.percentile(0.5),
                "p95": self.percentile(0.95),
                "max": max(self.lengths, default=0),
            },
        }

    @property
    def lines(self) -> int:
        """Lines of all files."""
        return sum(account.lines for account in self.files.values())

    @property
    def dropped(self) -> Counter[str]:
        """Dropped rows of all files, by reason."""
        return sum((account.dropped for account in self.files.values()), Counter[str]())

    def summary(self) -> str:
        """How many rows were read, and what became of those that were not kept."""
        return f"{self.lines} rows read, dropped: {_counts(self.dropped) or 'none'}"

    def problem(self, data: Data) -> str | None:
        """Why these rows must not be trained on, or None."""
        return self._damaged_file() or self._too_many_rejects(data.max_reject_share) or self._empty_split(data)

    def _damaged_file(self) -> str | None:
        for name, account in self.files.items():
            if account.dropped[BROKEN]:
                return f"{name} is damaged: nothing after line or element {account.lines - 1} can be read"
        return None

    def _too_many_rejects(self, max_reject_share: float) -> str | None:
        dropped = self.dropped
        lines = self.lines - sum(dropped[reason] for reason in HARMLESS)
        bad = Counter({reason: count for reason, count in dropped.items() if reason not in HARMLESS})
        if not lines or bad.total() / lines <= max_reject_share:
            return None
        hint = ": save the file as UTF-8" if bad["bad_utf8"] else ""
        hint += "; --data.allow_tokens permits harmless tokens" if bad["control_token"] else ""
        return (
            f"{bad.total()} of {lines} rows were dropped ({_counts(bad, 4)}), "
            f"more than --data.max_reject_share {max_reject_share}{hint}"
        )

    def _empty_split(self, data: Data) -> str | None:
        needed = {
            "train": True,
            "validation": bool(data.validation_file or data.validation_share),
            "test": bool(data.test_file or data.test_share),
        }
        for split, counts in self.splits.items():
            if counts["rows"] or not needed[split]:
                continue
            without = f"{split}_file null" if getattr(data, f"{split}_file") else f"{split}_share 0"
            hint = "" if split == "train" else f": give --data.{split}_file, or --data.{without} to go without"
            empty = "".join(f"; {file} is empty" for file, account in self.files.items() if not account.lines)
            return f"no row is left for {split} ({self.summary()}{empty}){hint}"
        return None


def _counts(counts: Counter[str], most: int | None = None) -> str:
    """The most frequent reasons with their counts."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common(most))
