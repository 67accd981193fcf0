"""What the doctor says: a code, what it is and what it will do, and what mends it."""

from dataclasses import dataclass
from typing import Any

SEED_FAULT = "seed_fault_"  # begins the codes of the ten faults that a script, adapter, data file or command can have


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: for programs.
        what: what it is, and what it will do.
        next: the command or the change that mends it.
        stops: whether a stage will fail over it, or make something else than was meant; others are worth knowing.
        file: where it stands, of somebody's own files.
        lines: in that file; in a notebook "cell 3, line 2".
    """

    code: str
    what: str
    next: str
    stops: bool = True
    file: str = ""
    lines: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The file and the lines, as editors and terminals read it; empty for what is no file's."""
        return ":".join((self.file, ", ".join(self.lines))) if self.lines else self.file

    @property
    def text(self) -> str:
        """All of it in one line."""
        return " ".join(f"{self.place + ': ' if self.file else ''}{self.what}: {self.next}".split())

    def as_json(self) -> dict[str, Any]:
        """The finding as `doctor.json` holds it."""
        about: dict[str, Any] = {"code": self.code, "what": self.what, "next": self.next, "stops": self.stops}
        if self.file:
            about |= {"file": self.file, "lines": list(self.lines)}
        return about


@dataclass(frozen=True)
class Fact:
    """One line of the table that is shown of a healthy machine: a name, and what holds."""

    name: str
    value: str


@dataclass(frozen=True)
class Look:
    """What one look at something gave."""

    facts: tuple[Fact, ...] = ()
    findings: tuple[Finding, ...] = ()


def report(looks: list[Look]) -> dict[str, Any]:
    """`doctor.json`: `ok` is whether nothing was found that stops a stage."""
    findings = [finding for look in looks for finding in look.findings]
    return {
        "ok": not any(finding.stops for finding in findings),
        "findings": [finding.as_json() for finding in findings],
        "facts": {fact.name: fact.value for look in looks for fact in look.facts},
    }
