"""Which weights an endpoint computes with: its log-probabilities against those of the trained model and of its base."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lockstep.serving import gate_bounds
from lockstep.verification.endpoint_client import QUANTIZING, STEP, Endpoint
from lockstep.verification.endpoint_log_probs import Way
from lockstep.verification.endpoint_places import HELD_OUT, LogProbs, Place, divergence
from lockstep.verification.endpoint_suppositions import ON_NF4
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

BOUND = 0.01  # nats a token between the trained model and the same weights in another engine
TWICE = 8  # places that are asked a second time, which tells the engine's own noise
NOISE_FACTOR = 3
SHARE = 0.1  # of the distance between base and trained model that the bound may be: a third of its effect missing
BESIDE_BASE = 0.2  # of the distance to the trained model that is left to the base: a quantized base is not exact
OFF = 0.25  # by which the effect of training may differ from 1
# What a quantized file of the trained weights may differ by (docs/verify.md has the measurements): up to LIGHTLY it
# passes where the engine says that it serves such a file; up to HEAVILY it cannot be told from other weights.
LIGHTLY, HEAVILY = 0.05, 0.45
LIGHT = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K")
UNLIKELY = -12.0  # log-probabilities below it are compared as if they were this: nobody sees such a token


@dataclass(frozen=True)
class Effect:
    """How far on the way from base to trained model an endpoint is: 0 at the base, 1 where it should be.

    Attributes:
        slope: of a line through the origin, by least squares, through (trained - base, served - base).
        error: its standard error.
        explained: share of what is observed that the line explains; 1: all.
    """

    slope: float
    error: float
    explained: float


@dataclass(frozen=True)
class Distances:
    """What was measured at an endpoint, in nats a token.

    Attributes:
        trained: mean KL from the trained model, of the worst kind of places.
        base: mean KL from its base, on held-out rows; None where no base is on record.
        kinds: mean KL from the trained model, for each kind of places.
        noise: mean distance between two answers to the same question.
        effect: of the training; None where no base is on record or training changed nothing.
        places: how many were compared.
        training: mean KL of the base from the trained model, both on record; None where no base is.
        beside: mean KL from the trained model at the places of `base`.
        certified: how far the right merged model is from the trained one, by its certificate; 0 where none is known.
        answers: what the endpoint told at each place.
    """

    trained: float
    base: float | None
    kinds: dict[str, float]
    noise: float
    effect: Effect | None
    places: int
    training: float | None
    beside: float | None
    certified: float = 0.0
    answers: Sequence[tuple[Place, LogProbs]] = field(repr=False, default=())

    @property
    def bound(self) -> float:
        """Within which these are the trained weights: less where training itself changed little."""
        room = BOUND if self.training is None else min(BOUND, SHARE * self.training)
        return max(room, NOISE_FACTOR * self.noise, gate_bounds.OF_CERTIFICATE * self.certified)

    @property
    def is_base(self) -> bool:
        """Whether it is the base that answers."""
        if self.effect is None or self.base is None or self.beside is None:
            return False
        return self.effect.slope < 0.3 and self.base < BESIDE_BASE * self.beside

    @property
    def is_as_strong(self) -> bool:
        """Whether the training acts as strongly as it should, as far as that can be told."""
        effect = self.effect
        return effect is None or abs(effect.slope - 1) <= OFF + NOISE_FACTOR * effect.error


def measure(
    endpoint: Endpoint, way: Way, places: Sequence[Place], certified: Mapping[str, float] | None = None
) -> Distances | None:
    """Ask about all places that a way can be asked about; None where there are none.

    Args:
        certified: as of `Expectation`.
    """
    asked = _affordable(endpoint, [place for place in places if way.takes(place)])
    if not asked:
        return None
    served = endpoint.ask_all(lambda place: way.ask(endpoint, place), asked)
    again = endpoint.ask_all(lambda place: way.ask(endpoint, place), asked[:: max(1, len(asked) // TWICE)][:TWICE])
    first = served[:: max(1, len(asked) // TWICE)][:TWICE]
    noise = fmean(divergence(earlier, later) for earlier, later in zip(first, again, strict=True))
    pairs = list(zip(asked, served, strict=True))
    kinds = {
        kind: fmean(divergence(place.trained, told) for place, told in pairs if place.kind == kind)
        for kind in dict.fromkeys(place.kind for place in asked)
    }
    # Of held-out rows the same tokens are on record of the base; after conversations its own likeliest.
    with_base = [(place, told) for place, told in pairs if place.base is not None]
    with_base = [pair for pair in with_base if pair[0].kind == HELD_OUT] or with_base
    of_base = [divergence(place.base or {}, told) for place, told in with_base]
    training = [divergence(place.trained, place.base or {}) for place, _ in with_base]
    beside = [divergence(place.trained, told) for place, told in with_base]
    return Distances(
        trained=max(kinds.values()),
        base=fmean(of_base) if of_base else None,
        kinds=kinds,
        noise=noise,
        effect=_effect(with_base) if with_base else None,
        places=len(asked),
        training=fmean(training) if training else None,
        beside=fmean(beside) if beside else None,
        certified=max((certified or {}).values(), default=0.0),
        answers=pairs,
    )


def _affordable(endpoint: Endpoint, places: Sequence[Place]) -> list[Place]:
    """Of each kind of places as many as a slow engine answers in bounded time."""
    kinds = dict.fromkeys(place.kind for place in places)
    return [
        place
        for kind in kinds
        for place in endpoint.affordable([place for place in places if place.kind == kind], STEP / len(kinds))
    ]


def _effect(pairs: Sequence[tuple[Place, LogProbs]]) -> Effect | None:
    expected, observed = [], []
    for place, told in pairs:
        base = place.base or {}
        for token in place.trained.keys() & base.keys() & told.keys():
            trained, untrained, served = (max(value[token], UNLIKELY) for value in (place.trained, base, told))
            expected.append(trained - untrained)
            observed.append(served - untrained)
    size = sum(value * value for value in expected)
    if not size:
        return None
    slope = sum(x * y for x, y in zip(expected, observed, strict=True)) / size
    residual = sum((y - slope * x) ** 2 for x, y in zip(expected, observed, strict=True))
    whole = sum(value * value for value in observed)
    error = math.sqrt(residual / max(1, len(expected) - 1) / size)
    return Effect(slope, error, 1 - residual / whole if whole else 1.0)


def weights_proof(endpoint: Endpoint, way: Way, distances: Distances, supposed: tuple[str, str] | None = None) -> Proof:
    """Whether these are the trained model's weights, and what they are otherwise.

    Args:
        supposed: diagnosis and words of a fault that was tried here and says what the endpoint says.
    """
    figures: dict[str, Any] = {
        "endpoint_kl_trained": round(distances.trained, 6),
        "endpoint_kl_base": None if distances.base is None else round(distances.base, 6),
        "endpoint_kl_noise": round(distances.noise, 6),
        "endpoint_kl_bound": round(distances.bound, 6),
        "endpoint_kl_training": None if distances.training is None else round(distances.training, 6),
        "endpoint_kl_by_kind": {kind: round(value, 6) for kind, value in distances.kinds.items()},
        "endpoint_places": distances.places,
        "endpoint_log_probs": way.name,
    }
    compared = f"{distances.trained:.4f} nats a token from the trained model at {distances.places} places"
    if distances.training is not None and distances.training < NOISE_FACTOR * distances.noise:
        return Proof(
            UNKNOWN, figures, None,
            f"training changed the model by {distances.training:.4f} nats a token, which the engine's own noise hides",
            "train for longer, or give rows like those of the training (--data)",
        )  # fmt: skip
    if distances.trained <= distances.bound and distances.is_as_strong:
        return Proof(PASSED, figures, None, f"{compared}, within the bound of {distances.bound:.4f} (by {way.name})")
    diagnosis, words = supposed or (_diagnosis(distances), "")
    if diagnosis == ON_NF4:
        return Proof(PASSED, figures, diagnosis, f"{words}; it is {compared} on the original weights")
    if diagnosis:
        meaning, advice = _MEANINGS[diagnosis]
        words = words or meaning
        measured = compared if distances.base is None else f"{compared}, {distances.base:.4f} from its base"
        return Proof(FAILED, figures, diagnosis, f"{words}: it is {measured}", advice)
    quantization = _quantization(endpoint)
    figures["endpoint_quantization"] = quantization
    if quantization.startswith(LIGHT) and distances.trained <= LIGHTLY:
        text = f"{compared}, as far as {quantization} of the trained weights may be (bound {LIGHTLY})"
        return Proof(PASSED, figures, None, text)
    if endpoint.engine in QUANTIZING and distances.trained <= HEAVILY:
        return Proof(
            UNKNOWN, figures, None,
            f"{compared}: as far as quantizing to 4 bits puts the trained weights, or these are other weights",
            "compare the served file itself (--export), or serve a Q8_0 or F16 file and verify again",
        )  # fmt: skip
    return Proof(
        FAILED, figures, "other_weights",
        f"these are other weights: it is {compared} (bound {distances.bound:.4f})",
        "serve the trained model: compare the folder that the server was started on (--merged, --adapter)",
    )  # fmt: skip


_MEANINGS = {
    "base": (
        "the endpoint computes with the base: the training is not in it",
        "serve the merged folder, or ask for the adapter by its own name (vLLM: --lora-modules NAME=FOLDER)",
    ),
    "twice": (
        "the training acts twice: an adapter over weights into which it was merged already",
        "serve the merged folder alone, or the adapter on its base",
    ),
    "scaled": (
        "the training acts with another strength",
        "look at lora_alpha, r and use_rslora of the served adapter_config.json, and at scales given to the server",
    ),
    "partial": (
        "a part of the training is missing",
        "look at the server's log for modules that it skips; serve the merged folder",
    ),
    "other_rope": (
        "short texts agree and long ones do not: other rotary embeddings, or another window",
        "compare rope_theta, rope_parameters and sliding_window of the served config.json with the base's",
    ),
    "other_weights": (
        "these are neither the trained weights nor the base's",
        "serve the trained model: compare the folder that the server was started on (--merged, --adapter)",
    ),
}  # fmt: skip


def _diagnosis(distances: Distances) -> str | None:
    """The nearest known fault, where the measurements fit it; None where only the distance is known."""
    short = [value for kind, value in distances.kinds.items() if kind != "long"]
    if short and distances.kinds.get("long", 0.0) > distances.bound >= max(short):
        return "other_rope"
    effect, base, beside = distances.effect, distances.base, distances.beside
    if effect is None or base is None or beside is None:
        return None
    if distances.is_base:
        return "base"
    apart = abs(effect.slope - 1) - 3 * effect.error
    if effect.explained > 0.8 and apart > 0.1:
        return "twice" if effect.slope > 1.5 else "scaled"
    if 0.1 < effect.slope < 0.9 and apart > 0 and effect.explained > 0.5:
        return "partial"
    return "other_weights" if effect.explained < 0.3 or beside > 4 * base else None


def _quantization(endpoint: Endpoint) -> str:
    """What an engine says of its file's quantization, such as Q4_K_M; empty where it says nothing."""
    details = endpoint.about.get("details")
    named = details.get("quantization_level") if isinstance(details, dict) else None
    named = named or endpoint.about.get("model_ftype") or ""
    return str(named).rpartition(" ")[2].removeprefix("MOSTLY_").upper()


def adapter_proof(distances: Distances, supposed: tuple[str, str] | None = None) -> Proof | None:
    """Whether the training acts at the endpoint as it should; None where no base is on record.

    Args:
        supposed: as of `weights_proof`.
    """
    if distances.base is None:
        return None
    effect = distances.effect
    if effect is None:
        return Proof(UNKNOWN, {}, None, "training changed nothing that can be measured", "train for longer")
    figures = {
        "endpoint_effect": round(effect.slope, 4),
        "endpoint_effect_error": round(effect.error, 4),
        "endpoint_effect_explained": round(effect.explained, 4),
    }
    acts = f"the training's effect is {effect.slope:.2f} ± {effect.error:.2f} of what it should be"
    if effect.error > 0.25:
        return Proof(UNKNOWN, figures, None, f"{acts}: too uncertain to tell", "give more rows (--data)")
    if distances.is_base:
        return Proof(FAILED, figures, "no_effect", f"{acts}: it answers as the base does", _MEANINGS["base"][1])
    if supposed and supposed[0] == ON_NF4:
        return Proof(PASSED, figures, None, f"{acts} on the original weights, and all of it on NF4 ones")
    if supposed or not distances.is_as_strong:
        diagnosis = supposed[0] if supposed else _diagnosis(distances)
        named = diagnosis if diagnosis in ("twice", "scaled", "partial", "other_weights") else None
        return Proof(FAILED, figures, named, acts, _MEANINGS[named or "other_weights"][1])
    return Proof(PASSED, figures, None, acts)
