"""The gate's measure of how far a served model is from the trained one: KL divergence, in nats a token.

Of each distribution the trained model's likeliest tokens are on record. The server is asked for exactly these, and all
others count as one more token: the divergence of such a partition is a lower bound of the whole one, and close to it,
as little is left.
"""

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lockstep.serving.probe import Server

KINDS = ("rows", "ends", "vocabulary", "long", "chats")
PER_ROW = 4  # places in a row of a record that holds no distributions
LEFT = 1e-6  # probability below which what is left is rounding of what is on record

LogProbs = dict[int, float]  # token id → natural logarithm of its probability


@dataclass(frozen=True)
class Place:
    """A place in a row for which log-probabilities are on record.

    Attributes:
        kind: of KINDS; `ends` are the end-of-turn tokens of held-out rows, `rows` their other places, `chats` the
            first tokens after golden conversations.
        prompt: the tokens before it.
        token: the one that stands there; of a conversation the likeliest.
        trained, base: on record; no base where none was recorded.
        messages: of a conversation: that part of a request's body.
    """

    kind: str
    prompt: list[int]
    token: int
    trained: LogProbs
    base: LogProbs | None = None
    messages: dict[str, Any] | None = None

    @property
    def length(self) -> int:
        """Tokens before it."""
        return len(self.prompt)


@dataclass(frozen=True)
class Distance:
    """How far the served model is from the trained one at a place."""

    place: Place
    served: LogProbs
    kl: float


def places_of(recorded: dict[str, Any], most: dict[str, int], longest: int) -> list[Place]:
    """The places of a reference that a server can be asked for, from the longest prompt to the shortest.

    So that what is kept of a long prompt serves the shorter ones of the same row.

    Args:
        most: rows of each kind that are compared, evenly spread.
        longest: tokens of prompt and answer that the server takes.
    """
    places = []
    for kind, rows in _by_kind(recorded).items():
        for row in spread(rows, most.get(kind, len(rows))):
            for place, trained, base in row["at"]:
                ids = row["input_ids"]
                is_end = kind == "rows" and place == row["at"][-1][0]
                token = ids[place]
                places.append(Place("ends" if is_end else kind, ids[:place], token, trained, base))
    fit = [place for place in places if place.length < longest]
    return sorted(fit, key=lambda place: -place.length)


def _by_kind(recorded: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A reference's rows of each kind, with (place, trained, base) `at` each of their places."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for probe in recorded.get("probes") or map(_as_probe, recorded["rows"]):
        bases = probe["base"] or [None] * len(probe["places"])
        at = [
            (place, dict(zip(ids, trained, strict=True)), base and dict(zip(ids, base, strict=True)))
            for place, ids, trained, base in zip(probe["places"], probe["ids"], probe["trained"], bases, strict=True)
        ]
        kinds.setdefault(probe["kind"], []).append({"input_ids": probe["input_ids"], "at": at})
    return kinds


def _as_probe(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an older record, of which only the tokens' own log-probabilities are known."""
    *others, end = range(len(row["places"]))
    chosen = [*others[:: max(1, math.ceil(len(others) / (PER_ROW - 1)))], end]
    return {
        "kind": "rows",
        "input_ids": row["input_ids"],
        "places": [row["places"][index] for index in chosen],
        "ids": [[row["input_ids"][row["places"][index]]] for index in chosen],
        "trained": [[row["trained"][index]] for index in chosen],
        "base": row["base"] and [[row["base"][index]] for index in chosen],
    }


def chats_of(golden: Sequence[Any], agreed: dict[str, Any], most: int, longest: int) -> list[Place]:
    """The first tokens after golden conversations, the shortest of them, as places.

    Args:
        golden: the reference's record of the contract's conversations.
        agreed: the contract.
        longest: tokens of prompt and answer that the server takes.
    """
    conversations = {conversation["name"]: conversation for conversation in agreed["conversations"]}
    places = []
    for record in golden:
        conversation, likeliest = conversations[record["name"]], record["trained"]
        body = {"messages": conversation["messages"]}
        if "tools" in conversation:
            body |= {"tools": conversation["tools"], "tool_choice": "none"}
        trained = dict(zip(likeliest["ids"], likeliest["logprobs"], strict=True))
        places.append(Place("chats", conversation["prompt_ids"], likeliest["ids"][0], trained, None, body))
    fit = [place for place in places if place.length < longest]
    return sorted(fit, key=lambda place: place.length)[:most]


def ask(server: Server, model: str, place: Place, alone: bool = False) -> LogProbs:
    """What the server says of the tokens that are on record for a place.

    Args:
        alone: computed anew, without what it may have kept of the same prompt.
    """
    body: dict[str, Any] = {
        "model": model, "max_tokens": 1, "temperature": 0, "logprob_token_ids": list(place.trained),
        "return_tokens_as_token_ids": True,
    }  # fmt: skip
    if alone:
        body["cache_salt"] = secrets.token_hex(8)
    if place.messages is not None:
        answer = server.ask("/v1/chat/completions", body | place.messages | {"logprobs": True})
        given = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        values = {each["token"]: each["logprob"] for each in given}
    else:
        answer = server.ask("/v1/completions", body | {"prompt": place.prompt, "logprobs": 1})
        values = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    by_id = {int(name.removeprefix("token_id:")): value for name, value in values.items()}
    return {token: math.nan if by_id.get(token) is None else float(by_id[token]) for token in place.trained}


def divergence(recorded: LogProbs, served: LogProbs) -> float:
    """KL(recorded ‖ served) over the tokens on record and all others as one, in nats; infinite where a value is NaN."""
    total, left, left_served = 0.0, 1.0, 1.0
    for token, log_prob in recorded.items():
        probability = math.exp(log_prob)
        total += probability * (log_prob - served[token])
        left -= probability
        left_served -= math.exp(served[token])
    if left > LEFT:
        total += left * math.log(left / max(left_served, LEFT))
    return math.inf if math.isnan(total) else max(total, 0.0)


def means(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each kind's values, in the order of KINDS."""
    of_kinds: dict[str, list[float]] = {}
    for kind, value in values:
        of_kinds.setdefault(kind, []).append(value)
    return {kind: fmean(of_kinds[kind]) for kind in KINDS if kind in of_kinds}


def spread(subjects: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly spread."""
    return list(subjects[:: math.ceil(len(subjects) / most) or 1]) if most else []


def distances(places: Sequence[Place], answers: Sequence[LogProbs]) -> list[Distance]:
    """Of each place, by what was answered."""
    return [
        Distance(place, served, divergence(place.trained, served))
        for place, served in zip(places, answers, strict=True)
    ]
