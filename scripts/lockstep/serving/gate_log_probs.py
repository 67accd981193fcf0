"""The gate's proofs 3 and 4: the served model's distributions are those that training put on record.

The figure is KL divergence, in nats a token, on places of several kinds. Each kind is judged by itself: a fault that
only long rows show, or only tokens that no held-out row uses, must not be averaged away.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from lockstep.serving import gate_diagnosis, gate_divergence
from lockstep.serving.gate_bounds import Allowed, Bounds
from lockstep.serving.gate_diagnosis import Effect
from lockstep.serving.gate_divergence import Distance, Place
from lockstep.serving.gate_findings import Findings
from lockstep.serving.probe import Server

# How much is compared: enough to tell. On a CPU vLLM computes some 100 prompt tokens a second with adapters.
MERGED = {"rows": 32, "vocabulary": 64}  # rows of each kind
ADAPTER = {"rows": 16, "vocabulary": 32}
CHATS = 12  # golden conversations, the shortest, whose next token is compared
ALONE = {"rows": 4, "ends": 2, "vocabulary": 4, "long": 1, "chats": 2}  # places that are asked twice
BENEATH = 16  # places that the base beneath an adapter is asked for

Answers = Callable[[Sequence[Place]], list[Distance]]

LOG_PROBS = "log-probabilities"  # the name of both proofs, while they are in progress
NOTHING = ("logprob_gap", "end_token_gap", "differs_from_base", "adapter_effect", "kl", "kl_bound", "kl_noise")


def check(
    server: Server,
    name: str,
    base_name: str | None,
    recorded: dict[str, Any],
    agreed: dict[str, Any],
    bounds: Bounds,
    certified: dict[str, float],
    findings: Findings,
) -> None:
    """Proofs 3 and 4, and what the outcome looks like.

    Args:
        name: that clients send.
        base_name: the name of the base beneath the adapters; None where none is served.
        recorded: the reference.
        agreed: the contract.
        certified: how far, by the merge's certificate, the merged model is from the trained one, of each kind.
    """
    most, longest = ADAPTER if base_name else MERGED, bounds.max_model_len
    places = gate_divergence.places_of(recorded, most, longest)
    places += gate_divergence.chats_of(recorded["golden"], agreed, CHATS, longest)

    def answers(model: str, subjects: Sequence[Place], alone: bool = False) -> list[Distance]:
        served = findings.ask_all(LOG_PROBS, lambda place: gate_divergence.ask(server, model, place, alone), subjects)
        return gate_divergence.distances(subjects, served)

    measured = answers(name, places)
    noise = _noise(server, name, measured, findings)
    allowed = bounds.allowed(noise, certified)
    _report(measured, noise, allowed, findings)
    findings.report["bound"] = bounds.logprob_gap
    if base_name:
        _check_beneath(
            [place for place in places if place.base], lambda sample: answers(base_name, sample), allowed, findings
        )
    _judge(measured, allowed, bounds, findings, lambda subjects: answers(name, subjects))
    if "probes" not in recorded:
        findings.warnings.append(
            "the run was trained by an earlier version, which recorded less: only single tokens are compared, in "
            "held-out rows; train it again to have whole distributions compared, over the whole vocabulary"
        )


def _noise(server: Server, name: str, measured: Sequence[Distance], findings: Findings) -> dict[str, float]:
    """KL of each kind between what was answered among other requests and what the same place is answered alone."""
    sample: list[Distance] = []
    for kind, count in ALONE.items():
        of_kind = [distance for distance in measured if distance.place.kind == kind]
        # the shortest of the long row, which costs least: what is kept of the others is not used
        sample += of_kind[-1:] if kind == "long" else gate_divergence.spread(of_kind, count)

    def again(distance: Distance) -> float:
        alone = gate_divergence.ask(server, name, distance.place, alone=True)
        return gate_divergence.divergence(distance.served, alone)

    values = findings.ask_all(LOG_PROBS, again, sample, at_once=1)
    kinds = [distance.place.kind for distance in sample]
    return gate_divergence.means(zip(kinds, values, strict=True))


def _report(measured: Sequence[Distance], noise: dict[str, float], allowed: Allowed, findings: Findings) -> None:
    """Put the figures into the report."""
    kinds = {}
    for kind in gate_divergence.KINDS:
        values = [distance.kl for distance in measured if distance.place.kind == kind]
        if values:
            kinds[kind] = {
                "mean": fmean(values), "worst": max(values), "positions": len(values),
                "bound": allowed.of(kind), "noise": noise.get(kind),
            }  # fmt: skip
    of_rows = [distance for distance in measured if distance.place.kind in ("rows", "ends")]
    ends = [distance for distance in of_rows if distance.place.kind == "ends"]
    chats = [distance for distance in measured if distance.place.kind == "chats"]
    findings.report |= {
        "positions": len(of_rows),
        "kl": fmean(distance.kl for distance in measured),
        "kl_bound": allowed.whole,
        "kl_noise": allowed.noise,
        "kl_kinds": kinds,
        "logprob_gap": gap(of_rows),
        "end_token_gap": gap(ends) if ends else None,
    }
    if chats:
        findings.report |= {"chats": len(chats), "chat_gap": gap(chats)}


def gap(measured: Sequence[Distance]) -> float:
    """Mean distance of the log-probabilities of the tokens that stand at places, in nats."""
    return fmean(abs(each.served[each.place.token] - each.place.trained[each.place.token]) for each in measured)


def _judge(
    measured: Sequence[Distance], allowed: Allowed, bounds: Bounds, findings: Findings, answers: Answers
) -> None:
    """Add the reason not to serve it, if there is one.

    Args:
        answers: what the server answers at places.
    """
    effect = effect_of(measured)
    findings.report |= {
        "differs_from_base": None if effect is None else effect.differs,
        "adapter_effect": None if effect is None or effect.share is None else round(effect.share, 4),
    }
    if effect and effect.share is not None:
        findings.report["adapter_effect_error"] = round(effect.error, 4)
    if findings.reasons:
        return
    named, reason = gate_diagnosis.fault(measured, effect, allowed)
    if named == gate_diagnosis.BY_MESSAGES:
        chats = [replace(each.place, messages=None) for each in measured if each.place.kind == "chats"]
        named, reason = gate_diagnosis.fault_of_chats(measured, answers(chats), allowed)
    report = findings.report
    if reason:
        findings.refuse(named, reason)
    elif bounds.logprob_gap is not None:
        for key, what in (("logprob_gap", "tokens"), ("end_token_gap", "end-of-turn tokens")):
            if report[key] is not None and not report[key] <= bounds.logprob_gap:
                findings.refuse(
                    "other_weights",
                    f"its {what}' log-probabilities are {report[key]:.3f} nats from the trained model's, and "
                    f"--serve.max_logprob_gap is {bounds.logprob_gap}",
                )
                return
    elif effect and not effect.can_be_told(allowed):
        findings.warnings.append(
            f"training moved the model by only {effect.kl:.5f} nats a token, which rounding can hide: that the "
            f"training is in it is proved by files alone; train for longer"
        )


def effect_of(measured: Sequence[Distance]) -> Effect | None:
    """How far on the way from the base to the trained model the served one is: 0 at the base, 1 where it should be.

    That is the slope of a line through the origin, fitted by least squares to (trained - base, served - base) of all
    tokens on record. They are logits to within a constant of each place, and an adapter at another scale moves logits
    by that scale; so each place's mean is taken off. Its standard error lets errors within a place go together.

    Returns:
        None where all weights were trained, which leaves no base of the same kind on record.
    """
    with_base = [each for each in measured if each.place.base]
    if not with_base:
        return None
    size = product = 0.0
    pairs = []
    for each in with_base:
        tokens, base = list(each.place.trained), each.place.base or {}
        expected = _centred([each.place.trained[token] - base[token] for token in tokens])
        observed = _centred([each.served[token] - base[token] for token in tokens])
        pairs.append((expected, observed))
        size += sum(x * x for x in expected)
        product += sum(x * y for x, y in zip(expected, observed, strict=True))
    kl = fmean(gate_divergence.divergence(each.place.trained, each.place.base or {}) for each in with_base)
    if not size:
        return Effect(kl, None, math.inf, 0.0)
    share = product / size
    scores = [sum(x * (y - share * x) for x, y in zip(*pair, strict=True)) for pair in pairs]
    error = math.sqrt(sum(score**2 for score in scores)) / size
    left = sum((y - share * x) ** 2 for pair in pairs for x, y in zip(*pair, strict=True))
    off = sum((y - x) ** 2 for pair in pairs for x, y in zip(*pair, strict=True))
    return Effect(kl, share, error, 1 - left / off if off else 0.0)


def _centred(values: list[float]) -> list[float]:
    """Values less their mean; a single one as it is."""
    mean = fmean(values) if len(values) > 1 else 0.0
    return [value - mean for value in values]


def _check_beneath(places: Sequence[Place], answers: Answers, allowed: Allowed, findings: Findings) -> None:
    """Whether the base beneath the adapter is the one on record, at a few of the places."""
    sample = [_of_base(place) for place in gate_divergence.spread(places, BENEATH)]
    if not sample:
        return
    measured = answers(sample)
    kl = fmean(each.kl for each in measured)
    findings.report |= {"base_gap": gap(measured), "base_kl": kl}
    if not kl <= allowed.of("rows"):
        findings.refuse(
            "other_weights",
            f"the base beneath the adapter is {kl:.3f} nats a token from the one it was trained on",
        )


def _of_base(place: Place) -> Place:
    """The same place, with what the base gives on record as what is expected."""
    return replace(place, trained=place.base or {}, base=None)
