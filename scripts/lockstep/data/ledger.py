"""What became of every line: kept, or dropped with a reason. The sums always match."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lockstep.data.collator import IGNORE
from lockstep.data.encoding import Sample
from lockstep.data.readers import BROKEN

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
        self.lengths: Counter[int] = Counter()

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
        wanted, passed = share * self.lengths.total(), 0
        for length in sorted(self.lengths):
            passed += self.lengths[length]
            if passed >= wanted:
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

    def summary(self) -> str:
        """How many rows were read, and what became of those that were not kept."""
        dropped = sum((account.dropped for account in self.files.values()), Counter[str]())
        named = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()) or "none"
        return f"{sum(account.lines for account in self.files.values())} rows read, dropped: {named}"

    def problem(self, max_reject_share: float) -> str | None:
        """Why these rows must not be trained on, or None."""
        dropped = sum((account.dropped for account in self.files.values()), Counter[str]())
        lines = sum(account.lines for account in self.files.values()) - sum(dropped[reason] for reason in HARMLESS)
        bad = Counter({reason: count for reason, count in dropped.items() if reason not in HARMLESS})
        broken = [name for name, account in self.files.items() if account.dropped[BROKEN]]
        if broken:
            last = self.files[broken[0]].lines
            return f"{broken[0]} is damaged: nothing after line or element {last - 1} can be read"
        if lines and bad.total() / lines > max_reject_share:
            named = ", ".join(f"{reason} {count}" for reason, count in bad.most_common(4))
            hint = ": save the file as UTF-8" if bad["bad_utf8"] else ""
            hint += "; --data.allow_tokens permits harmless tokens" if bad["control_token"] else ""
            return f"{bad.total()} of {lines} rows were dropped ({named}), more than --data.max_reject_share {max_reject_share}{hint}"
        return None
