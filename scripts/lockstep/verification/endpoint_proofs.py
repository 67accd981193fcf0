"""All proofs that can be asked of an endpoint: is it the trained model that answers there?"""

from collections.abc import Callable
from typing import Any

from lockstep.verification import (
    endpoint_client,
    endpoint_log_probs,
    endpoint_places,
    endpoint_sampling,
    endpoint_stops,
    endpoint_tokens,
    endpoint_weights,
    plain_tokenizer,
)
from lockstep.verification.endpoint_client import Endpoint
from lockstep.verification.endpoint_places import Place
from lockstep.verification.expectation import Expectation
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

Tell = Callable[[str], None]


def endpoint_proofs(
    expectation: Expectation, url: str, model: str | None = None, tell: Tell = lambda step: None
) -> dict[str, Proof]:
    """Ask an endpoint, with the key in LOCKSTEP_API_KEY, and say what that proves.

    Args:
        url: of the endpoint, with or without /v1.
        model: name that requests carry; None where it has one only.
        tell: is told which proof is in progress.

    Returns:
        proof by name, of `verdict.PROOFS`; those that do not apply are left out.

    Raises:
        UserError: it cannot be reached, wants a key, or has no such model.
    """
    tell(f"which engine answers at {url}")
    endpoint = endpoint_client.connect(url, model)
    longest = endpoint.card.get("max_model_len")
    longest = longest if isinstance(longest, int) else None
    tell(f"prompts of {endpoint.engine}")
    tokens = endpoint_tokens.proof(endpoint, expectation, endpoint_tokens.ask(endpoint, expectation.contract, longest))
    places = endpoint_places.of(expectation.contract, expectation.reference or {}, longest)
    texts = _texts(expectation, places)
    tell("log-probabilities")
    weights, adapter, tokens = _weights(endpoint, places, texts, tokens)
    tell("where answers end")
    stops = endpoint_stops.proof(endpoint, expectation, weights)
    tell("how tokens are drawn")
    sampling = _sampling(endpoint, expectation, places, texts, weights, tokens)
    about = {"endpoint_engine": endpoint.engine, "endpoint_model": endpoint.model}
    weights = Proof(weights.status, about | weights.figures, weights.diagnosis, weights.text, weights.next)
    proofs = {"weights": weights, "adapter": adapter, "tokens": tokens, "stops": stops, "sampling": sampling}
    return {name: proof for name, proof in proofs.items() if proof}


def _texts(expectation: Expectation, places: list[Place]) -> dict[bytes, int]:
    """Text → id of the tokens on record that have a text of their own; empty where the tokenizer is not at hand."""
    if expectation.tokenizer is None:
        return {}
    tokenizer = plain_tokenizer.load(expectation.tokenizer)
    ids = {token for place in places for token in endpoint_log_probs.asked_at(place)}
    texts: dict[bytes, int] = {}
    ambiguous: set[bytes] = set()
    for token in sorted(ids):
        text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False).encode()
        if text in texts:
            ambiguous.add(text)
        texts[text] = token
    return {text: token for text, token in texts.items() if text not in ambiguous}


def _weights(
    endpoint: Endpoint, places: list[Place], texts: dict[bytes, int], tokens: Proof
) -> tuple[Proof, Proof | None, Proof]:
    """(weights, adapter, tokens): log-probabilities after prompts that the endpoint made also say what these were."""
    if not places:
        missing = Proof(
            UNKNOWN, {}, None, "what the trained model says is not on record",
            "give base and adapter, or the merged folder (--base, --adapter, --merged), or a bundle that has it",
        )  # fmt: skip
        return missing, None, tokens
    way = endpoint_log_probs.way(endpoint, places, texts)
    if way is None:
        return _without_log_probs(endpoint, places)[0], _without_log_probs(endpoint, places)[1], tokens
    if not way.by_ids and tokens.status == FAILED:
        missing = Proof(
            UNKNOWN, {}, None, "after other prompts than in training log-probabilities tell nothing of the weights",
            tokens.next,
        )  # fmt: skip
        return missing, missing, tokens
    distances = endpoint_weights.measure(endpoint, way, places)
    assert distances
    weights = endpoint_weights.weights_proof(endpoint, way, distances)
    if not way.by_ids and weights.status == PASSED and tokens.status == UNKNOWN:
        words = f"{tokens.text}; after them it says what the trained model says"
        tokens = Proof(PASSED, tokens.figures, None, words)
    return weights, endpoint_weights.adapter_proof(distances), tokens


def _without_log_probs(endpoint: Endpoint, places: list[Place]) -> tuple[Proof, Proof | None]:
    missing = Proof(
        UNKNOWN, {}, None, f"{endpoint.engine} tells no log-probabilities",
        "serve the same folder with vLLM or llama.cpp's server once, or compare its files (--merged, --export)",
    )  # fmt: skip
    return missing, missing if any(place.base for place in places) else None


def _sampling(
    endpoint: Endpoint,
    expectation: Expectation,
    places: list[Place],
    texts: dict[bytes, int],
    weights: Proof,
    tokens: Proof,
) -> Proof:
    """How tokens are drawn is known by the trained model's probabilities: not after other prompts, by other weights."""
    if FAILED in (weights.status, tokens.status):
        first: Any = weights if weights.status == FAILED else tokens
        return Proof(
            UNKNOWN, {}, None, "how tokens are drawn cannot be told from other weights, or after other prompts",
            first.next,
        )  # fmt: skip
    return endpoint_sampling.proof(endpoint, places, expectation.sampling, texts, expectation.contract["stop_ids"])
