"""What the gate will find of a merged model, as far as the merge's own measurement tells: before a server starts."""

from statistics import fmean
from typing import Any

from lockstep.serving import gate_bounds, gate_divergence
from lockstep.serving.gate_bounds import Allowed


def of_merge(recorded: dict[str, Any], report: dict[str, Any], max_kl: float | None, max_gap: float | None) -> str:
    """What to say of a merge that the gate would refuse, or could tell little of; empty where nothing is.

    Args:
        recorded: the reference.
        report: the certificate.
        max_kl, max_gap: as set for the gate; None where not.
    """
    measured = report["candidates"][report["strategy"]]
    allowed = Allowed(max_kl, {}, gate_bounds.of_report(report))
    for kind, kl in measured["kl_kinds"].items():
        if not kl <= allowed.of(kind):
            return (
                f"the merge is {kl:.4f} nats a token from the trained model (KL, {kind}): the gate will not "
                f"open (bound {allowed.of(kind):.4f}); train for longer, serve the adapter, or allow more with "
                f"--serve.max_kl"
            )
    for key, what in (("logprob_gap", "tokens"), ("end_token_gap", "end-of-turn tokens")):
        if max_gap is not None and measured[key] > max_gap:
            return (
                f"the merge's {what} are {measured[key]:.3f} nats off: the gate will not open (bound {max_gap:.3f}); "
                f"train for longer, serve the adapter, or allow more with --serve.max_logprob_gap"
            )
    effect = effect_of(recorded)
    if effect is not None and effect <= allowed.told("rows"):
        return (
            f"training changed the model by only {effect:.5f} nats a token, which rounding can hide: no answer of a "
            f"server can prove that it is in it; train for longer"
        )
    return ""


def effect_of(recorded: dict[str, Any]) -> float | None:
    """How far training moved the model from its base on held-out rows, in nats a token; None after full training."""
    places = gate_divergence.places_of(recorded, {"vocabulary": 0, "long": 0}, recorded_longest(recorded))
    values = [gate_divergence.divergence(place.trained, place.base) for place in places if place.base]
    return fmean(values) if values else None


def recorded_longest(recorded: dict[str, Any]) -> int:
    """One token more than the longest row on record has."""
    return 1 + max(len(row["input_ids"]) for row in recorded["rows"])
