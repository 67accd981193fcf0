"""Which sampling an endpoint does that nobody asked for: defaults that it states, draws, and penalties seen in answers.

What was asked for is what the model's generation_config.json says. A server that samples as the plain distribution is,
and one that does what that file says, are both right; so is an engine with its own defaults, which are named, as long
as nobody set others.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.verification.endpoint_client import LLAMA_CPP, OLLAMA, SGLANG, VLLM, Endpoint, NotOffered
from lockstep.verification.endpoint_log_probs import Texts
from lockstep.verification.endpoint_places import CONVERSATIONS, LogProbs, Place
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

DRAWS, TOGETHER = 96, 16  # first tokens that are drawn in all, and in a request
PROMPTS = 2  # conversations that they are drawn after
SIGMAS = 5.0  # by which their mean log-probability may be off
FEWEST_DRAWS = 16  # tokens that count
SPREAD = 0.4  # standard deviation of a token's log-probability, in nats: with less, draws tell nothing
GREEDY = 4  # conversations that are answered without sampling, with penalties set to nothing and left alone
ANSWER = 8  # tokens of each
BIAS = 50.0  # by which two tokens are put before all others
AHEAD = 0.15  # nats by which that of the prompt is put before the other: any penalty of repetition undoes that
# Engines' own defaults, in transformers' names, which they state on a route of theirs.
LLAMA_CPP_NAMES = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "repeat_penalty": "repetition_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}  # fmt: skip
NEUTRAL: dict[str, tuple[float, ...]] = {
    "temperature": (1.0,), "top_k": (0, -1), "top_p": (1.0,), "min_p": (0.0,), "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,), "frequency_penalty": (0.0,),
}  # fmt: skip
ENGINES_OWN: dict[str, tuple[float, ...]] = {
    "temperature": (0.8,), "top_k": (40,), "top_p": (0.95, 0.9), "min_p": (0.05,), "repetition_penalty": (1.0, 1.1),
}  # fmt: skip
TEMPERATURES = (0.0, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 1.2, 1.5, 2.0)
ADVICE = (
    "start the server without it (vLLM: --generation-config vllm, no --override-generation-config), or send "
    "temperature, top_p, top_k and penalties with every request"
)


def proof(
    endpoint: Endpoint, places: Sequence[Place], asked_for: Mapping[str, Any], texts: Texts, stops: Sequence[int]
) -> Proof:
    """Read the defaults that the engine states, or find out by draws and by answers.

    Args:
        places: golden conversations among them are used.
        asked_for: what generation_config.json says.
        texts: of the tokens on record; empty where the tokenizer is not at hand.
        stops: ids that end an answer.
    """
    figures: dict[str, Any] = {}
    stated = _stated(endpoint)
    chats = [place for place in places if place.kind == CONVERSATIONS and not place.tools]
    if stated:
        figures["endpoint_defaults"] = stated
        odd = {name: value for name, value in stated.items() if not _expected(name, value, asked_for)}
        if odd:
            named = ", ".join(f"{name} {value}" for name, value in odd.items())
            return Proof(FAILED, figures, None, f"requests that set nothing are sampled with {named}", ADVICE)
    reasons = [_penalties(endpoint, chats, asked_for, stops, figures)]
    told = _drawn(endpoint, chats, asked_for, texts, stops, figures) if not stated else ""
    reasons += [told or ""]
    if any(reasons):
        return Proof(FAILED, figures, None, "; ".join(filter(None, reasons)), ADVICE)
    if stated:
        own = ", ".join(f"{name} {value}" for name, value in stated.items() if value not in NEUTRAL.get(name, ()))
        return Proof(PASSED, figures, None, f"the engine states its defaults: {own or 'none that change answers'}")
    if told is None:
        return Proof(
            UNKNOWN, figures, None, "no conversation on record leaves enough choice to tell how tokens are drawn",
            "send temperature, top_p and penalties with every request",
        )  # fmt: skip
    return Proof(PASSED, figures, None, f"{figures['endpoint_draws']} tokens were drawn as the trained model would")


def _stated(endpoint: Endpoint) -> dict[str, Any]:
    """Defaults that an engine states, in transformers' names; empty where it states none."""
    if endpoint.engine == LLAMA_CPP:
        settings = endpoint.about["default_generation_settings"]
        settings = settings.get("params", settings)
        known = {ours: settings.get(theirs) for theirs, ours in LLAMA_CPP_NAMES.items()}
        return {name: round(value, 4) for name, value in known.items() if value is not None}
    if endpoint.engine == SGLANG:
        return dict(endpoint.about.get("preferred_sampling_params") or {})
    if endpoint.engine == OLLAMA:
        return _of_modelfile(str(endpoint.about.get("parameters") or ""))
    return {}


def _of_modelfile(text: str) -> dict[str, Any]:
    """Sampling in Ollama's `parameters`: a name and a value a line."""
    names = {**LLAMA_CPP_NAMES, "repeat_penalty": "repetition_penalty"}
    defaults: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name in names:
            try:
                defaults[names[name]] = float(value)
            except ValueError:
                continue
    return defaults


def _expected(name: str, value: float, asked_for: Mapping[str, Any]) -> bool:
    given = asked_for.get(name)
    allowed = (*NEUTRAL.get(name, ()), *ENGINES_OWN.get(name, ()), *(() if given is None else (given,)))
    return any(math.isclose(value, other, abs_tol=1e-4) for other in allowed)


def _penalties(
    endpoint: Endpoint,
    chats: Sequence[Place],
    asked_for: Mapping[str, Any],
    stops: Sequence[int],
    figures: dict[str, Any],
) -> str:
    """Why penalties or biases seem to be set by default; empty where they are not, or where it cannot be told."""
    neutral: dict[str, Any] = {"temperature": 0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    declared: dict[str, Any] = {}
    if endpoint.engine in (VLLM, SGLANG):
        neutral["repetition_penalty"] = 1.0
        declared = {"repetition_penalty": asked_for.get("repetition_penalty", 1.0)}
    elif endpoint.engine == LLAMA_CPP:
        neutral["repeat_penalty"] = 1.0
    # Penalties count tokens of prompts, too.
    longest = sorted(chats, key=lambda place: (bool(_nearly_tied(place, stops)), len(place.prompt)))[-GREEDY:]

    def answer(place: Place, fields: dict[str, Any]) -> str:
        if bias := _nearly_tied(place, stops):
            fields = fields | {"logit_bias": bias}
        message = endpoint.chat(place.messages or (), max_tokens=ANSWER, **fields)["choices"][0]["message"]
        return "".join(str(message.get(part) or "") for part in ("reasoning", "reasoning_content", "content"))

    try:
        plain = endpoint.ask_all(lambda place: answer(place, neutral), longest)
        again = endpoint.ask_all(lambda place: answer(place, neutral), longest)
        left_alone = endpoint.ask_all(lambda place: answer(place, {"temperature": 0}), longest)
        told = [place for place, x, y in zip(longest, plain, again, strict=True) if x == y]
        changed = [p for p, x, y, z in zip(longest, plain, again, left_alone, strict=True) if x == y != z]
        figures |= {"endpoint_greedy_answers": len(told), "endpoint_greedy_changed": len(changed)}
        if changed and declared.get("repetition_penalty", 1.0) != 1.0:
            as_declared = endpoint.ask_all(lambda place: answer(place, neutral | declared), changed)
            others = [z for place, z in zip(longest, left_alone, strict=True) if place in changed]
            changed = [place for place, x, y in zip(changed, as_declared, others, strict=True) if x != y]
    except (NotOffered, LookupError, TypeError):
        return ""
    if not changed:
        return ""
    return (
        f"{len(changed)} of {len(told)} greedy answers change if penalties are set to nothing: some are on by default"
    )


def _nearly_tied(place: Place, stops: Sequence[int]) -> dict[str, float]:
    """A logit bias that puts two tokens before all others, one of the prompt just before one that is not in it.

    Without penalties the first comes, and with one of repetition the second. Empty where there are no such tokens.
    """
    ordinary = [token for token in place.trained if token not in stops]
    repeated = next((token for token in ordinary if token in place.prompt), None)
    fresh = next((token for token in ordinary if token not in place.prompt), None)
    if repeated is None or fresh is None:
        return {}
    behind = place.trained[repeated] - place.trained[fresh] - AHEAD
    return {str(repeated): BIAS, str(fresh): BIAS + max(-BIAS, min(BIAS, behind))}


def _drawn(
    endpoint: Endpoint,
    chats: Sequence[Place],
    asked_for: Mapping[str, Any],
    texts: Texts,
    stops: Sequence[int],
    figures: dict[str, Any],
) -> str | None:
    """Why first tokens are not drawn as they should be; empty where they are; None where draws tell nothing.

    Only tokens on record count, and among them, where answers come as texts, those that a text tells.
    """
    told = {token for token in texts.values() if token not in stops}
    places = sorted((place for place in chats if _spread(place.trained) > SPREAD), key=lambda p: -_spread(p.trained))
    observed: list[tuple[LogProbs, int]] = []
    try:
        for place in places[:PROMPTS]:
            drawn = _draw(endpoint, place, DRAWS // PROMPTS, texts)
            by_ids = all(is_id for _, is_id in drawn)
            recorded = (
                place.trained if by_ids else {token: place.trained[token] for token in told & place.trained.keys()}
            )
            if _spread(recorded) > SPREAD:
                observed += [(recorded, token) for token, _ in drawn if token in recorded]
    except (NotOffered, LookupError, TypeError):
        return None
    if len(observed) < FEWEST_DRAWS:
        return None
    sigmas = _off(observed, {})
    figures |= {"endpoint_draws": len(observed), "endpoint_draws_off": round(sigmas, 2)}
    if abs(sigmas) <= SIGMAS or abs(_off(observed, asked_for)) <= SIGMAS:
        return ""
    nearest = min(TEMPERATURES, key=lambda value: abs(_off(observed, {"temperature": value})))
    figures["endpoint_temperature"] = nearest
    what = "always the likeliest" if nearest == 0 else f"as with temperature {nearest}"
    return f"tokens are drawn {what} where a request sets nothing ({sigmas:+.1f} standard deviations off)"


def _draw(endpoint: Endpoint, place: Place, count: int, texts: Texts) -> list[tuple[int, bool]]:
    """(first token, whether its id was told) of answers to requests that set nothing of sampling.

    The token is -1 where only a text is told that is no token's.
    """

    def draw(number: int) -> list[tuple[int, bool]]:
        fields: dict[str, Any] = {"max_tokens": 1}
        if number > 1:
            fields["n"] = number
        if endpoint.engine == VLLM:
            fields["return_token_ids"] = True
        answer = endpoint.chat(place.messages or (), **fields)
        return [_token(choice, texts) for choice in answer["choices"]]

    try:
        batches = endpoint.ask_all(draw, [TOGETHER] * (count // TOGETHER))
        if all(len(batch) == TOGETHER for batch in batches):
            return [token for batch in batches for token in batch]
    except NotOffered:
        pass  # an engine that gives one answer a request
    return [token for batch in endpoint.ask_all(draw, endpoint.affordable([1] * (count // 2))) for token in batch]


def _token(choice: dict[str, Any], texts: Texts) -> tuple[int, bool]:
    if ids := choice.get("token_ids"):
        return int(ids[0]), True
    return texts.get(str(choice["message"].get("content") or "").encode(), -1), False


def _spread(recorded: LogProbs) -> float:
    if not recorded:
        return 0.0
    mean, square = _moments(_outcomes(recorded, {}))
    return math.sqrt(max(square - mean * mean, 0.0))


def _outcomes(recorded: LogProbs, sampling: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(probability under some sampling, log-probability of the model) of each token on record, none beside."""
    values = sorted(recorded.values(), reverse=True)
    temperature = sampling.get("temperature", 1.0)
    if sampling.get("do_sample") is False or temperature < 0.01:
        return [(float(place == 0), value) for place, value in enumerate(values)]
    weights = [math.exp(value / temperature) for value in values]
    if top_k := sampling.get("top_k"):
        weights = [weight if place < top_k else 0.0 for place, weight in enumerate(weights)]
    total = sum(weights)
    if (top_p := sampling.get("top_p", 1.0)) < 1:
        before = [sum(weights[:place]) / total for place in range(len(weights))]
        weights = [weight if share < top_p else 0.0 for weight, share in zip(weights, before, strict=True)]
        total = sum(weights)
    return [(weight / total, value) for weight, value in zip(weights, values, strict=True)]


def _moments(outcomes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(p * value for p, value in outcomes), sum(p * value * value for p, value in outcomes)


def _off(observed: Sequence[tuple[LogProbs, int]], sampling: Mapping[str, Any]) -> float:
    """By how many standard deviations the draws' mean log-probability is off what some sampling would give.

    Args:
        observed: the tokens that could come, and the one that came.
    """
    total = expected = variance = 0.0
    for recorded, token in observed:
        mean, square = _moments(_outcomes(recorded, sampling))
        total += recorded[token]
        expected += mean
        variance += max(square - mean * mean, 0.0)
    # Endpoint and record round otherwise, which matters where a sampling leaves one token.
    return (total - expected) / math.sqrt(variance + 0.0025 * len(observed) + 1.0)
