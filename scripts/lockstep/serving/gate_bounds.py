"""What the gate judges by: how far the served model may be from the trained one."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lockstep.artifacts import atomic, filenames, manifest

LEAST = 0.01  # nats a token that are allowed in any case: the sum of small differences between two programs
TOLD = 0.001  # nats a token below which nothing counts as seen
OF_NOISE = 3  # times the noise of the server's own answers
MOST_EXCUSED = 0.05  # nats a token up to which noise, or what a certificate measured, excuses a distance
OF_CERTIFICATE = 2  # times what the merge's certificate measured
SINGLE = 50  # times the bound of the mean: what one place may have; right models have been seen at 8


@dataclass(frozen=True)
class Bounds:
    """What settings say of it, and what a server takes.

    Args:
        kl: nats a token; None: as noise and certificate have it.
        logprob_gap: mean distance of tokens' log-probabilities that is allowed; None: it is not judged.
        min_stop_rate: share of answers that must end by themselves; None: few of them are only a warning.
        max_model_len: tokens of prompt and answer that the server takes.
        vocabulary: how many token ids the model has.
    """

    kl: float | None
    logprob_gap: float | None
    min_stop_rate: float | None
    max_model_len: int
    vocabulary: int

    def allowed(self, noise: dict[str, float], certified: dict[str, float]) -> "Allowed":
        """How far it may be.

        Args:
            noise: of each kind, in nats a token.
            certified: of each kind, by the certificate of a merge; `""`: of all others.
        """
        return Allowed(self.kl, noise, certified)


@dataclass(frozen=True)
class Allowed:
    """How far the served model may be from the trained one, in nats a token. See `Bounds.allowed`."""

    given: float | None
    by_kind: dict[str, float]
    certified: dict[str, float]

    @property
    def noise(self) -> float:
        """Of the server's own answers, as a mean over the kinds."""
        return fmean(self.by_kind.values()) if self.by_kind else 0.0

    @property
    def whole(self) -> float:
        """Of all kinds together."""
        return self.given or self._bound(LEAST, self.noise, self.certified.get("rows", 0.0))

    def of(self, kind: str) -> float:
        """Of the mean of one kind."""
        return self.given or self._bound(LEAST, *self._known(kind))

    def told(self, kind: str) -> float:
        """What can be told from nothing."""
        return self._bound(TOLD, *self._known(kind))

    def _known(self, kind: str) -> tuple[float, float]:
        return self.by_kind.get(kind, self.noise), self.certified.get(kind, self.certified.get("rows", 0.0))

    def _bound(self, least: float, noise: float, certified: float) -> float:
        return max(least, min(OF_NOISE * noise, MOST_EXCUSED), OF_CERTIFICATE * certified)


def certified(adapter: Path) -> dict[str, float]:
    """`of_report` of the certificate of the adapter's merged model; empty where there is none, or it is of another one.

    Serving the adapter itself rounds as much as merging it does.

    Args:
        adapter: its folder in a run.
    """
    merged = adapter.with_name(filenames.MERGED)
    file = merged / filenames.MERGE_REPORT
    if not file.exists() or manifest.read(adapter).digest not in manifest.read(merged).inputs.values():
        return {}
    return of_report(atomic.read_json(file))


def of_report(report: dict[str, Any]) -> dict[str, float]:
    """How far a certificate says that the merged model is from the trained one, of each kind of places.

    What was measured past the certificate's own bound is no excuse, nor is a report that allows itself anything.
    """
    measured = report["candidates"][report["strategy"]]
    kinds = {"rows": measured["kl_mean"]} | measured.get("kl_kinds", {})
    return {kind: min(kl, report["bound"], MOST_EXCUSED) for kind, kl in kinds.items()}
