"""What became of every line: kept, or dropped with a reason. The sums always match."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lockstep.data.collator import IGNORE
from lockstep.data.conversation_row import Remarks
from lockstep.data.encoding import Sample
from lockstep.data.hints import hint
from lockstep.data.records import BROKEN, Reject
from lockstep.settings.schema import Data
from lockstep.text.unicode import drop_controls, printable

# Sound rows that the settings or their own marks leave out, and empty lines, say nothing against a file.
HARMLESS = ("blank", "duplicate", "near_duplicate", "in_two_splits", "marked_untrained")
FIRST = 100  # rows of a file, of which one at least must be of use,
# but for these reasons: a file that is sorted by length may begin with them
OF_TEXTS = ("too_long", "too_short", "answer_too_long", "garbled", "empty_prompt", "empty_answer", "nothing_to_train")
MOST_NAMES = 50  # different ignored fields of a file that are counted by name
OTHERS = "…"  # the name under which the rest is counted


@dataclass
class Account:
    """One file's lines (JSONL) or elements (arrays, tables).

    Attributes:
        truncated: kept rows whose prompt was cut, and the tokens cut.
        changed: kept rows that a cleaning step changed, by step.
        per_turn: kept rows that became one sample a turn, and those samples.
        ignored: kept rows by the fields that they hold and nothing reads.
        renamed: kept rows by the fields that were read under another name, as `query → instruction`.
        noted: kept rows by the codes of `conversation_row.Remarks`.
    """

    lines: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=lambda: Counter(rows=0, tokens=0))
    changed: Counter[str] = field(default_factory=Counter)
    per_turn: Counter[str] = field(default_factory=lambda: Counter(rows=0, samples=0))
    ignored: Counter[str] = field(default_factory=Counter)
    renamed: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)

    def remark(self, remarks: Remarks) -> None:
        """Count what was noticed of a kept row."""
        for name in remarks.ignored:
            name = printable(name)[:80]
            self.ignored[name if name in self.ignored or len(self.ignored) < MOST_NAMES else OTHERS] += 1
        self.renamed.update(map(printable, remarks.renamed))
        self.noted.update(remarks.noted.keys())

    @property
    def bad(self) -> Counter[str]:
        """Dropped rows that speak against the file, by reason."""
        return Counter({reason: count for reason, count in self.dropped.items() if reason not in HARMLESS})

    def as_json(self) -> dict[str, Any]:
        if self.lines != self.kept + sum(self.dropped.values()):
            raise AssertionError(f"the ledger does not add up: {self}")
        return {name: dict(v) if isinstance(v, Counter) else v for name, v in vars(self).items()}


class Ledger:
    """Accounts by file, and sums by split."""

    def __init__(self, splits: Sequence[str]) -> None:
        self.files: dict[str, Account] = defaultdict(Account)
        self.splits = {split: Counter(rows=0, samples=0, tokens=0, supervised_tokens=0) for split in splits}
        self.lengths: Counter[int] = Counter()  # samples by their length in tokens
        self.first: dict[str, Reject] = {}  # reason → the first row that was dropped for it
        self.examples: dict[str, tuple[str, str]] = {}  # code of a remark → the first row with it, and what it holds

    def drop(self, file: str, reason: str, reject: Reject | None = None) -> None:
        account = self.files[file]
        account.lines += 1
        account.dropped[reason] += 1
        if reject:
            self.first.setdefault(reason, reject)

    def keep(self, split: str, samples: Sequence[Sample], changed: Sequence[str]) -> None:
        account = self.files[samples[0].row.record.file]
        account.lines += 1
        account.kept += 1
        account.changed.update(set(changed))
        cut = sum(sample.cut for sample in samples)
        account.truncated.update(rows=int(cut > 0), tokens=cut)
        if len(samples) > 1:
            account.per_turn.update(rows=1, samples=len(samples))
        row = samples[0].row
        account.remark(row.remarks)
        for code, example in row.remarks.noted.items():
            self.examples.setdefault(code, (row.name, example))
        self.splits[split].update(rows=1, samples=len(samples))
        for sample in samples:
            size = len(sample.input_ids)
            supervised = size - sample.labels.count(IGNORE)
            self.splits[split].update(tokens=size, supervised_tokens=supervised)
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

    def hopeless(self, data: Data) -> str | None:
        """Why no row need be read any more, or None: a file is damaged, or none of its first rows can be used."""
        if reason := self._damaged_file():
            return reason
        for name, account in self.files.items():
            bad = Counter({reason: count for reason, count in account.bad.items() if reason not in OF_TEXTS})
            if not account.kept and bad.total() >= FIRST and data.max_reject_share < 1:
                return (
                    f"none of the first {bad.total()} rows of {name} can be used ({_counts(bad, 4)}){self._first(bad)}"
                )
        return None

    def _first(self, bad: Counter[str]) -> str:
        """Where the first row of the most frequent reason stands, what it is, and what helps."""
        reason = bad.most_common(1)[0][0]
        reject = self.first.get(reason)
        if not reject:
            return ""
        detail = f", {_one_line(reject.detail)}" if reject.detail else ""
        return f"; {reject.place}: {reason}{detail}{hint(reject)}"

    def _damaged_file(self) -> str | None:
        for name, account in self.files.items():
            if account.dropped[BROKEN]:
                reject = self.first.get(BROKEN)
                detail = f" ({_one_line(reject.detail)})" if reject and reject.file == name else ""
                return f"{name} is damaged: nothing after line or element {account.lines - 1} can be read{detail}"
        return None

    def _too_many_rejects(self, max_reject_share: float) -> str | None:
        bad = sum((account.bad for account in self.files.values()), Counter[str]())
        lines = self.lines - sum(self.dropped[reason] for reason in HARMLESS)
        if not lines or bad.total() / lines <= max_reject_share:
            return None
        cure = ": save the file as UTF-8" if bad["bad_utf8"] else ""
        cure += "; --data.allow_tokens permits harmless tokens" if bad["control_token"] else ""
        return (
            f"{bad.total()} of {lines} rows were dropped ({_counts(bad, 4)}), "
            f"more than --data.max_reject_share {max_reject_share}{cure}{self._first(bad)}"
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
            reasons = self.dropped
            first = self._first(reasons) if split == "train" and reasons else ""
            return f"no row is left for {split} ({self.summary()}{empty}){hint}{first}"
        return None


def _one_line(text: str) -> str:
    return " ".join(drop_controls(text).split())[:300]


def _counts(counts: Counter[str], most: int | None = None) -> str:
    """The most frequent reasons with their counts."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common(most))
