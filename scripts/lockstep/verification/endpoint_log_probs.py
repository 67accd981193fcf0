"""How each engine tells the log-probabilities of a next token: by ids where it can, by the tokens' texts otherwise."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.verification.endpoint_client import Endpoint, NotOffered
from lockstep.verification.endpoint_places import LogProbs, Place

ASKED = 20  # tokens of a distribution that are asked for; vLLM gives no more by default
LIKELIEST = 100  # of llama.cpp, which tells the likeliest tokens only
FORCED = 1000  # logit bias by which a token surely comes
# What leaves a distribution as the model gives it, in vLLM's and SGLang's names: some engines tell log-probabilities
# after sampling's changes.
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "presence_penalty": 0.0,
           "frequency_penalty": 0.0}  # fmt: skip
NEUTRAL_CHAT = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

Texts = Mapping[bytes, int]  # bytes of a token's text → its id


@dataclass(frozen=True)
class Way:
    """A way in which an endpoint tells log-probabilities.

    Attributes:
        name: for people.
        by_ids: it takes the token ids of any prompt; otherwise only messages, and the endpoint makes the prompt.
        ask: log-probabilities at a place, of as many of the tokens on record as the endpoint tells.
    """

    name: str
    by_ids: bool
    ask: Callable[[Endpoint, Place], LogProbs]

    def takes(self, place: Place) -> bool:
        """Whether it can be asked about a place."""
        return self.by_ids or place.messages is not None


def asked_at(place: Place) -> list[int]:
    """The tokens whose log-probabilities are wanted at a place, the likeliest of the trained model first."""
    tokens = dict.fromkeys([*place.trained, *(place.base or ())])
    ends = [place.token] if place.token is not None else []
    return list(dict.fromkeys([*ends, *tokens]))


def _vllm(endpoint: Endpoint, place: Place) -> LogProbs:
    asked = asked_at(place)
    told: LogProbs = {}
    for start in range(0, len(asked), ASKED):
        tokens = asked[start : start + ASKED]
        body = {
            "model": endpoint.model, "prompt": place.prompt, "max_tokens": 1, "logprobs": 1,
            "logprob_token_ids": tokens, "return_tokens_as_token_ids": True, **NEUTRAL,
        }  # fmt: skip
        given = _get(endpoint.ask("/v1/completions", body), "choices", 0, "logprobs", "top_logprobs", 0)
        if not isinstance(given, dict) or not all(name.startswith("token_id:") for name in given):
            raise NotOffered("/v1/completions gives no log-probabilities by token ids")
        told |= {int(name.removeprefix("token_id:")): _number(value) for name, value in given.items()}
        if not set(tokens) <= told.keys():
            raise NotOffered("/v1/completions gives other tokens' log-probabilities than those it was asked for")
    return {token: told[token] for token in asked}


def _sglang(endpoint: Endpoint, place: Place) -> LogProbs:
    asked = asked_at(place)
    body = {
        "input_ids": place.prompt, "sampling_params": {"max_new_tokens": 1, **NEUTRAL}, "return_logprob": True,
        "token_ids_logprob": asked,
    }  # fmt: skip
    if endpoint.card.get("parent"):
        body["lora_path"] = endpoint.model
    given = _get(endpoint.ask("/generate", body), "meta_info", "output_token_ids_logprobs", 0)
    told = {int(entry[1]): _number(entry[0]) for entry in given}
    return {token: told[token] for token in asked if token in told}


def _llama_cpp(letter: int) -> Callable[[Endpoint, Place], LogProbs]:
    """By llama.cpp's own route, which tells nothing of a token that ends an answer or is half a character.

    Args:
        letter: the id of one, which is forced to come; log-probabilities are told as they were before.
    """

    def ask(endpoint: Endpoint, place: Place) -> LogProbs:
        body = {
            "prompt": place.prompt, "n_predict": 1, "n_probs": LIKELIEST, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
            "min_p": 0.0, "repeat_penalty": 1.0, "post_sampling_probs": False, "cache_prompt": False,
            "logit_bias": [[letter, FORCED]],
        }  # fmt: skip
        given = _get(endpoint.ask("/completion", body), "completion_probabilities", 0, "top_logprobs")
        told = {int(entry["id"]): _number(entry["logprob"]) for entry in given}
        return {token: told[token] for token in asked_at(place) if token in told}

    return ask


def _by_chat(texts: Texts) -> Callable[[Endpoint, Place], LogProbs]:
    def ask(endpoint: Endpoint, place: Place) -> LogProbs:
        assert place.messages is not None
        fields = {"max_tokens": 1, "logprobs": True, "top_logprobs": ASKED, **NEUTRAL_CHAT}
        answer = endpoint.chat(place.messages, place.tools, **fields)
        given = _get(answer, "choices", 0, "logprobs", "content", 0, "top_logprobs")
        told: LogProbs = {}
        for entry in given:
            spelled = bytes(entry["bytes"]) if entry.get("bytes") is not None else str(entry["token"]).encode()
            if (token := texts.get(spelled)) is not None:
                told[token] = _number(entry["logprob"])
        if not told:
            raise NotOffered("/v1/chat/completions: no token's text is one of the trained model's tokens")
        return {token: told[token] for token in asked_at(place) if token in told}

    return ask


def way(endpoint: Endpoint, places: Sequence[Place], texts: Texts) -> Way | None:
    """The best way in which an endpoint tells log-probabilities, tried on one place; None where it tells none.

    Args:
        texts: of the tokens on record; empty where the tokenizer is not at hand.
    """
    ways = [
        Way("ids of /v1/completions", True, _vllm),
        Way("ids of /generate", True, _sglang),
    ]
    spelled = endpoint.offers("/tokenize", {"content": "a"})
    if isinstance(spelled, dict) and spelled.get("tokens"):
        ways.append(Way("ids of /completion", True, _llama_cpp(int(spelled["tokens"][-1]))))
    if texts:
        ways.append(Way("texts of /v1/chat/completions", False, _by_chat(texts)))
    for candidate in ways:
        sample = next((place for place in places if candidate.takes(place)), None)
        if sample is None:
            continue
        try:
            told = candidate.ask(endpoint, sample)
        except (NotOffered, LookupError, TypeError, ValueError):  # another engine's answer has another form
            continue
        if told and all(value <= 1e-3 for value in told.values()):
            return candidate
    return None


def _get(answer: Any, *keys: str | int) -> Any:
    """A part of an answer. Raises NotOffered where it is not there."""
    for key in keys:
        try:
            answer = answer[key]
        except (LookupError, TypeError) as error:
            raise NotOffered(f"the answer has no {key!r}") from error
    if answer is None:
        raise NotOffered(f"the answer's {keys[-1]!r} is null")
    return answer


def _number(value: Any) -> float:
    """A log-probability; engines write -Infinity in several ways, and null. Raises NotOffered where it is none."""
    if value is None:
        return -1e4
    number = float(value)
    if math.isnan(number):
        raise NotOffered("a log-probability is not a number")
    return max(number, -1e4)
