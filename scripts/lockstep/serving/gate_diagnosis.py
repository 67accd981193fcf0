"""What a served model is instead of the trained one, by how their distributions differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lockstep.serving import gate_divergence
from lockstep.serving.gate_bounds import SINGLE, Allowed
from lockstep.serving.gate_divergence import Distance

BY_MESSAGES = "other_template"  # only what is asked by messages differs

HALF = 0.5  # of the way from base to trained: below, it is the base rather
AS_BASE = 0.15  # of that way, which is none
SCALES = 0.25  # by which the effect of a training may differ from 1 in any case
EXPLAINED = 0.4  # share of all differences that another scale must explain to be the fault


@dataclass(frozen=True)
class Effect:
    """What training did, and how much of it is served.

    Attributes:
        kl: of the trained model from its base, in nats a token.
        share: of the way from base to trained model; None where training changed nothing.
        error: its standard error.
        explained: share of the differences from the trained model that are due to `share` not being 1.
    """

    kl: float
    share: float | None
    error: float
    explained: float

    @property
    def differs(self) -> bool:
        """Whether the served model is the trained one rather than the base."""
        return self.share is not None and self.share > HALF and self.error < SCALES

    def can_be_told(self, allowed: Allowed) -> bool:
        """Whether it is large enough to be seen."""
        return self.share is not None and self.kl > allowed.told("rows")


def fault(measured: Sequence[Distance], effect: Effect | None, allowed: Allowed) -> tuple[str, str]:
    """(code, reason) of what is not as it should be; both empty where all is.

    Args:
        measured: at all places.
        effect: None where there is no base on record.
    """
    means = gate_divergence.means((each.place.kind, each.kl) for each in measured)
    errors = {kind: _error([each.kl for each in measured if each.place.kind == kind]) for kind in means}
    # a kind of few places is judged with its standard error taken off: right models must not be refused by chance
    over = [kind for kind, kl in means.items() if not kl - errors[kind] <= allowed.of(kind)]
    single = [each for each in measured if not each.kl <= SINGLE * allowed.of(each.place.kind)]
    whole = fmean(each.kl for each in measured)
    if effect and (scale := _other_scale(effect, means, bool(over), allowed)):
        return scale
    if not over and not single and whole <= allowed.whole:
        return "", ""
    if not over and single:
        return _at_single_places(single, allowed)
    return _looks_like(over, means, measured, whole, allowed)


def fault_of_chats(measured: Sequence[Distance], by_ids: Sequence[Distance], allowed: Allowed) -> tuple[str, str]:
    """(code, reason) where of all kinds only conversations are too far off.

    Args:
        measured: at all places.
        by_ids: at the same places of conversations, asked by token ids: as far off there, it is no fault of messages.
    """
    means = gate_divergence.means((each.place.kind, each.kl) for each in measured)
    if fmean(each.kl for each in by_ids) <= allowed.of("chats"):
        return _looks_like(["chats"], means, measured, 0.0, allowed)
    return "other_weights", (
        f"after conversations it is {means['chats']:.3f} nats a token from the trained model (KL, bound "
        f"{allowed.of('chats'):.3f}): these are other weights"
    )


def _error(values: Sequence[float]) -> float:
    """The standard error of their mean."""
    spread = stdev(values) if len(values) > 1 and math.isfinite(sum(values)) else 0.0
    return spread / math.sqrt(len(values))


def _other_scale(effect: Effect, means: dict[str, float], is_over: bool, allowed: Allowed) -> tuple[str, str] | None:
    """(code, reason) where the training is in it, but not as it should be; None where that is not the fault.

    Args:
        is_over: whether some kind of places is too far off.
    """
    told = any(means.get(kind, 0) > allowed.told(kind) for kind in ("rows", "ends"))
    if effect.share is None or not told or not effect.can_be_told(allowed) or effect.explained < EXPLAINED:
        return None
    margin = 3 * effect.error
    if abs(effect.share) < AS_BASE + margin and effect.share + margin < HALF:
        return "no_effect", (
            f"it answers as the base does (effect of the training {effect.share:.2f}, which should be 1): "
            f"the adapter is not in it"
        )
    if abs(effect.share - 1) > margin + (0 if is_over else SCALES):
        return "scaled", (
            f"the effect of the training is {effect.share:.2f} of what it should be: the adapter is scaled otherwise"
        )
    return None


def _at_single_places(single: Sequence[Distance], allowed: Allowed) -> tuple[str, str]:
    """The reason where few places are far off, and all others are as they should be."""
    worst = max(single, key=lambda each: each.kl)
    kinds = {each.place.kind for each in single}
    code = "embeddings" if kinds == {"vocabulary"} else "other_rope" if kinds == {"long"} else "other_weights"
    return code, (
        f"at {len(single)} places it is up to {worst.kl:.2f} nats from the trained model (KL, {worst.place.kind}), and "
        f"at most {SINGLE * allowed.of(worst.place.kind):.2f} is allowed at one: few of its tokens are another model's"
    )


def _looks_like(
    over: Sequence[str], means: dict[str, float], measured: Sequence[Distance], whole: float, allowed: Allowed
) -> tuple[str, str]:
    """(code, reason) where at least one kind of places is too far off, or all together are."""
    kind = over[0] if len(over) == 1 else ""
    if not kind:
        parts = ", ".join(f"{name} {kl:.3f}" for name, kl in means.items())
        return "other_weights", (
            f"it is {whole:.3f} nats a token from the trained model (KL, bound {allowed.whole:.3f}; {parts}): "
            f"these are other weights"
        )
    far = [each.place.length for each in measured if each.place.kind == kind and each.kl > allowed.of(kind)]
    code, where, meaning = {
        "rows": ("other_weights", "on held-out rows", "these are other weights"),
        "ends": ("end_token", "after whole answers", "it would end them elsewhere"),
        "vocabulary": ("embeddings", "after tokens from all over the vocabulary",
                       "embeddings of tokens that no held-out row uses differ"),
        "long": ("other_rope", f"beyond {min(far, default=0)} tokens", "it has another rope, or another window"),
        "chats": (BY_MESSAGES, "asked by messages", "they become other tokens there"),
    }[kind]  # fmt: skip
    return code, (
        f"{where} it is {means[kind]:.3f} nats a token from the trained model (KL, bound {allowed.of(kind):.3f}): "
        f"{meaning}"
    )
