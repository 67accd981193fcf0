"""All proofs that can be asked of an endpoint: is it the trained model that answers there?"""

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

from lockstep.errors import UserError
from lockstep.verification import (
    endpoint_client,
    endpoint_log_probs,
    endpoint_places,
    endpoint_sampling,
    endpoint_stops,
    endpoint_suppositions,
    endpoint_tokens,
    endpoint_weights,
    plain_tokenizer,
)
from lockstep.verification.endpoint_client import Endpoint, NotOffered, Silent
from lockstep.verification.endpoint_places import Place
from lockstep.verification.expectation import Expectation, Question, Supposition
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
    places = endpoint_places.of(expectation.contract, expectation.reference or {}, longest)
    texts = _texts(expectation, places)
    tell(f"{endpoint.engine}: prompts")
    asked = endpoint_tokens.with_rows(expectation)
    tokens = _or_unknown(
        lambda: endpoint_tokens.proof(endpoint, asked, endpoint_tokens.ask(endpoint, asked.contract, longest))
    )
    tell(f"{endpoint.engine}: log-probabilities")
    try:
        weights, adapter, tokens = _weights(endpoint, expectation, places, texts, tokens)
    except (NotOffered, Silent) as error:
        weights = _unanswered(error)
        adapter = weights if any(place.base for place in places) else None
    tell(f"{endpoint.engine}: where answers end")
    stops = _or_unknown(lambda: endpoint_stops.proof(endpoint, expectation, weights))
    tell(f"{endpoint.engine}: how tokens are drawn")
    sampling = _or_unknown(lambda: _sampling(endpoint, expectation, places, texts, weights, tokens))
    about = {"endpoint_engine": endpoint.engine, "endpoint_model": endpoint.model}
    weights = replace(weights, figures=about | weights.figures)
    proofs = {"weights": weights, "adapter": adapter, "tokens": tokens, "stops": stops, "sampling": sampling}
    return {name: proof for name, proof in proofs.items() if proof}


def _or_unknown(look: Callable[[], Proof]) -> Proof:
    """What a look proves; nothing where the endpoint no longer answers."""
    try:
        return look()
    except (NotOffered, Silent) as error:
        return _unanswered(error)


def _unanswered(error: UserError) -> Proof:
    return Proof(UNKNOWN, {}, None, f"the endpoint did not answer: {error}", "verify again when it is idle")


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
    half = "\ufffd".encode()  # of a character: many tokens have that text
    return {text: token for text, token in texts.items() if text not in ambiguous and half not in text}


def _weights(
    endpoint: Endpoint, expectation: Expectation, places: list[Place], texts: dict[bytes, int], tokens: Proof
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
    distances = endpoint_weights.measure(endpoint, way, places, expectation.certified)
    assert distances
    weights = endpoint_weights.weights_proof(endpoint, way, distances)
    supposed = None
    if weights.status != PASSED and weights.diagnosis != "base" and expectation.suppositions:
        supposed = _supposed(expectation.suppositions, distances)
        weights = endpoint_weights.weights_proof(endpoint, way, distances, supposed) if supposed else weights
    if not way.by_ids and weights.status == PASSED and tokens.status == UNKNOWN:
        words = f"{tokens.text}; after them it says what the trained model says"
        tokens = Proof(PASSED, tokens.figures, None, words)
    return weights, endpoint_weights.adapter_proof(distances, supposed), tokens


def _supposed(
    tried: Callable[[list[Question]], list[Supposition]], distances: endpoint_weights.Distances
) -> tuple[str, str] | None:
    """Diagnosis and words of the known fault that says what the endpoint says."""
    most = endpoint_suppositions.PLACES
    asked = [distances.answers[number] for number in endpoint_places.spread(distances.answers, most)]
    asked = [(place, told) for place, told in asked if place.kind != endpoint_places.LONG]
    questions = [(place.prompt, list(told)) for place, told in asked]
    apart = fmean(endpoint_places.divergence(place.trained, told) for place, told in asked)
    return endpoint_suppositions.nearest(tried(questions), [told for _, told in asked], apart)


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
