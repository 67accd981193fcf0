"""What an endpoint's log-probabilities are compared with: places at which the trained model's are on record."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.prompts.template import Message
from lockstep.serving import gate_divergence

CHATS = 24  # golden conversations, the shortest, whose next token is compared
ROWS = 16  # held-out rows, evenly spread
PER_ROW = 4  # tokens of each, the last one among them

LogProbs = dict[int, float]  # token id → natural logarithm of its probability
CONVERSATIONS, HELD_OUT, LONG = "conversations", "rows", "long"  # kinds of places; `probes` bring more
LONG_PLACES = 4  # of the long row, at its end


@dataclass(frozen=True)
class Place:
    """A place in a text for which log-probabilities are on record.

    Attributes:
        kind: CONVERSATIONS, HELD_OUT, or that of a probe: vocabulary, long.
        name: of the conversation or row, for people.
        prompt: the token ids before it.
        token: the id that stands there in a row; None after a golden conversation.
        is_end: whether that is the end-of-turn token after a whole answer.
        trained, base: on record, of the tokens likeliest to the trained model, or of `token` alone.
        messages, tools: what `prompt` was rendered from, where it is that and nothing else.
    """

    kind: str
    name: str
    prompt: list[int]
    token: int | None
    is_end: bool
    trained: LogProbs
    base: LogProbs | None
    messages: list[Message] | None = None
    tools: list[Any] | None = None


def of(contract: dict[str, Any], reference: dict[str, Any], longest: int | None) -> list[Place]:
    """All places to be compared.

    Args:
        longest: tokens that the endpoint takes; None: not known.
    """
    probes = _of_probes(reference.get("probes") or ())
    rows = [] if any(place.kind == HELD_OUT for place in probes) else _of_rows(reference.get("rows") or ())
    places = [*_of_conversations(contract, reference.get("golden") or ()), *rows, *probes]
    return [place for place in places if longest is None or len(place.prompt) < longest]


def _of_conversations(contract: dict[str, Any], golden: Sequence[dict[str, Any]]) -> list[Place]:
    conversations = {conversation["name"]: conversation for conversation in contract["conversations"]}
    known = [(conversations[record["name"]], record) for record in golden if record["name"] in conversations]
    known = sorted(known, key=lambda pair: len(pair[0]["prompt_ids"]))[:CHATS]
    return [
        Place(
            CONVERSATIONS,
            conversation["name"],
            conversation["prompt_ids"],
            None,
            False,
            _by_id(record["trained"]),
            _by_id(record["base"]) if record["base"] else None,
            conversation["messages"],
            conversation.get("tools"),
        )
        for conversation, record in known
    ]


def _by_id(likeliest: dict[str, Any]) -> LogProbs:
    return dict(zip(likeliest["ids"], likeliest["logprobs"], strict=True))


def spread(rows: Sequence[Any], most: int) -> list[int]:
    """Numbers of at most `most` rows, evenly spread."""
    return list(range(0, len(rows), math.ceil(len(rows) / most) or 1))


def _of_rows(rows: Sequence[dict[str, Any]]) -> list[Place]:
    places = []
    for number in spread(rows, ROWS):
        row = rows[number]
        *others, end = row["places"]
        step = max(1, math.ceil(len(others) / (PER_ROW - 1)))
        for place in [*others[::step], end]:
            at, token = row["places"].index(place), row["input_ids"][place]
            as_asked = place == row["start"] and bool(row.get("messages"))
            places.append(
                Place(
                    HELD_OUT,
                    f"row {number + 1}",
                    row["input_ids"][:place],
                    token,
                    place == end,
                    {token: row["trained"][at]},
                    {token: row["base"][at]} if row["base"] else None,
                    row["messages"] if as_asked else None,
                    row["tools"] if as_asked else None,
                )
            )
    return places


def _of_probes(probes: Sequence[dict[str, Any]]) -> list[Place]:
    compared: set[int] = set()
    for kind in dict.fromkeys(probe["kind"] for probe in probes):
        of_kind = [number for number, probe in enumerate(probes) if probe["kind"] == kind]
        compared |= {of_kind[at] for at in spread(of_kind, ROWS)}
    places = [
        Place(
            probe["kind"],
            f"{probe['kind']} {number + 1}",
            probe["input_ids"][:place],
            probe["input_ids"][place],
            probe["kind"] == HELD_OUT and place == probe["places"][-1],
            dict(zip(ids, probe["trained"][at], strict=True)),
            dict(zip(ids, probe["base"][at], strict=True)) if probe["base"] else None,
        )
        for number, probe in enumerate(probes)
        if number in compared
        for at, (place, ids) in enumerate(zip(probe["places"], probe["ids"], strict=True))
    ]
    lengthy = [place for place in places if place.kind == LONG]
    return [place for place in places if place.kind != LONG or place in lengthy[-LONG_PLACES:]]


def divergence(recorded: LogProbs, served: LogProbs) -> float:
    """KL(recorded ‖ served), in nats: over the tokens that both tell, and all others as one more.

    Such a partition bounds the whole divergence from below, and closely, as little is left for the others.
    """
    told = {token: value for token, value in recorded.items() if token in served}
    return gate_divergence.divergence(told, served)
