"""The gate's proofs 3 and 4: the served model's log-probabilities are those that training put on record.

All distances are in nats a token: the mean of absolute differences of log-probabilities.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lockstep.serving.gate_findings import Bounds, Findings
from lockstep.serving.probe import Server

# How much is compared: enough to tell. On a CPU vLLM computes some 100 prompt tokens a second with adapters.
ROWS_MERGED, ROWS_ADAPTER = 64, 24  # held-out rows
PER_ROW = 4  # tokens of each whose log-probability is compared, the last one among them
CHATS = 20  # golden conversations, the shortest, whose next token is compared
BENEATH = 16  # tokens that the base beneath an adapter is asked for
NOISE = 0.02  # nats a token by which equal models may differ, computed in bfloat16 by another program

LOG_PROBS = "log-probabilities"  # the name of both proofs, while they are in progress

Position = tuple[int, int]  # row, and place of a token in it


def check_rows(
    server: Server, name: str, base_name: str | None, rows: list[Any], bounds: Bounds, findings: Findings
) -> None:
    """Proofs 3 and 4, on held-out rows: all tokens that are compared, and the end-of-turn tokens among them.

    Args:
        base_name: the name of the base beneath the adapters; None where none is served.
        rows: of the reference; at least one.
    """
    positions = chosen_positions(rows, ROWS_ADAPTER if base_name else ROWS_MERGED)

    def log_prob(model: str, position: Position) -> float:
        row, place = position
        ids = rows[row]["input_ids"]
        choice = server.complete(model, ids[:place], max_tokens=1, logprobs=0, allowed_token_ids=[ids[place]])
        value = choice["logprobs"]["token_logprobs"][0]
        return math.nan if value is None else float(value)

    def on_record(model: str) -> list[float]:
        return [rows[row][model][rows[row]["places"].index(place)] for row, place in positions]

    served = findings.ask_all(LOG_PROBS, lambda position: log_prob(name, position), positions)
    trained = on_record("trained")
    base = on_record("base") if rows[0]["base"] else None
    effect = _distance(trained, base) if base else math.inf
    bound = bound_of(bounds.logprob_gap, bounds.as_given, effect)
    gap = _distance(served, trained)
    ends = [at for at, (row, place) in enumerate(positions) if place == rows[row]["places"][-1]]
    end_gap = _distance([served[at] for at in ends], [trained[at] for at in ends])
    findings.report |= {"positions": len(positions), "logprob_gap": gap, "end_token_gap": end_gap, "bound": bound}
    if base_name and base:
        _check_beneath(positions, base, effect, lambda position: log_prob(base_name, position), findings)
    check_effect(served, trained, base, findings)
    if not findings.reasons and not gap <= bound:  # NaN is past every bound, too
        findings.reasons.append(
            f"its log-probabilities are {gap:.3f} nats a token from the trained model's (bound {bound:.3f}): "
            f"{_meaning(effect)}"
        )
    if not findings.reasons and not end_gap <= bound:
        findings.reasons.append(
            f"after whole answers the end-of-turn token's log-probability is {end_gap:.3f} nats from the trained "
            f"model's (bound {bound:.3f}): it would stop elsewhere, or {_meaning(effect)}"
        )


def bound_of(logprob_gap: float, as_given: bool, effect: float) -> float:
    """How far a served model may be from the trained one, in nats a token.

    A training that changed little leaves less room for error, unless somebody set the bound.

    Args:
        logprob_gap, as_given: as of `Bounds`.
        effect: how far training moved the model, in nats a token.
    """
    return logprob_gap if as_given else min(logprob_gap, max(NOISE, 0.25 * effect))


def foresee(rows: list[Any], measured: dict[str, float], logprob_gap: float, as_given: bool) -> str:
    """What the gate will find too far, as far as the merge's own measurement tells; empty where nothing is.

    Args:
        rows: of the reference.
        measured: of the merge, with `logprob_gap` and `end_token_gap`.
        logprob_gap, as_given: as of `Bounds`.
    """
    if not rows[0]["base"]:  # after full training there is none on record
        return ""
    trained, base = ([value for row in rows for value in row[model]] for model in ("trained", "base"))
    effect = _distance(trained, base)
    bound = bound_of(logprob_gap, as_given, effect)
    advice = (
        f"the gate will not open (bound {bound:.3f}); train for longer, serve the adapter, or allow more with "
        f"--serve.max_logprob_gap"
    )
    gap, end_gap = measured["logprob_gap"], measured["end_token_gap"]
    if end_gap > bound:
        return (
            f"training changed the model by {effect:.3f} nats a token, and the merge's end-of-turn tokens are "
            f"{end_gap:.3f} off: {advice}"
        )
    if gap > bound:
        return f"training changed the model by {effect:.3f} nats a token, and the merge is {gap:.3f} off: {advice}"
    if effect < NOISE:
        return (
            f"training changed the model by only {effect:.3f} nats a token, which rounding can hide: the gate may not "
            f"open; train for longer"
        )
    return ""


def check_chats(
    server: Server, name: str, agreed: dict[str, Any], golden: list[Any], bounds: Bounds, findings: Findings
) -> None:
    """Proof 3 once more, as clients ask: messages in, and the trained model's likeliest next token compared.

    Args:
        agreed: the contract.
        golden: the reference's record of its conversations.
    """
    conversations = {conversation["name"]: conversation for conversation in agreed["conversations"]}

    def length(record: dict[str, Any]) -> int:
        return len(conversations[record["name"]]["prompt_ids"])

    records = [record for record in golden if length(record) < bounds.max_model_len]
    records = sorted(records, key=length)[:CHATS]

    def log_prob(record: dict[str, Any]) -> float:
        conversation = conversations[record["name"]]
        body = {
            "model": name, "messages": conversation["messages"], "temperature": 0, "max_tokens": 1,
            "logprobs": True, "allowed_token_ids": [record["trained"]["ids"][0]],
        }  # fmt: skip
        if "tools" in conversation:
            body |= {"tools": conversation["tools"], "tool_choice": "none"}
        content = server.ask("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
        return float(content[0]["logprob"])

    if not records:
        return
    served = findings.ask_all(LOG_PROBS, log_prob, records)
    gap = _distance(served, [record["trained"]["logprobs"][0] for record in records])
    findings.report |= {"chats": len(records), "chat_gap": gap}
    if not findings.reasons and not gap <= 5 * bounds.logprob_gap:  # few positions, far from the data
        findings.reasons.append(
            f"asked by messages, it is {gap:.3f} nats a token from the trained model: these are other weights"
        )


def check_effect(
    served: Sequence[float], trained: Sequence[float], base: Sequence[float] | None, findings: Findings
) -> None:
    """How far on the way from the base to the trained model the served one is: 0 at the base, 1 where it should be.

    That is the slope of a line through the origin, fitted by least squares to (trained - base, served - base); the
    slope's standard error says whether it can be told at all.

    Args:
        served, trained, base: log-probabilities of the same tokens; no base where all weights were trained, which
            leaves none of the same kind on record.
    """
    if base is None:
        findings.report |= {"differs_from_base": None, "adapter_effect": None}
        return
    expected = [ours - theirs for ours, theirs in zip(trained, base, strict=True)]
    observed = [ours - theirs for ours, theirs in zip(served, base, strict=True)]
    size = sum(value * value for value in expected)
    if not size:
        findings.report |= {"differs_from_base": False, "adapter_effect": None}
        findings.reasons.append("training changed nothing that can be measured: base and trained model are the same")
        return
    slope = sum(x * y for x, y in zip(expected, observed, strict=True)) / size
    residual = sum((y - slope * x) ** 2 for x, y in zip(expected, observed, strict=True))
    error = math.sqrt(residual / max(1, len(expected) - 1) / size)
    differs = slope > 0.5 and error < 0.25
    findings.report |= {
        "differs_from_base": differs,
        "adapter_effect": round(slope, 4),
        "adapter_effect_error": round(error, 4),
    }
    if slope <= 0.5:
        findings.reasons.append(
            f"it answers as the base does (effect of the training {slope:.2f}, which should be 1): "
            f"the adapter is not in it"
        )
    elif abs(slope - 1) > 0.25 + 3 * error:
        findings.reasons.append(
            f"the effect of the training is {slope:.2f} of what it should be: the adapter is scaled otherwise"
        )
    elif not differs:
        findings.reasons.append(
            f"whether the training has any effect cannot be told (effect {slope:.2f} ± {error:.2f}): train more"
        )


def chosen_positions(rows: list[Any], most: int) -> list[Position]:
    """The tokens to compare: of rows evenly spread, at most `most`, the end and others evenly before it."""
    positions: list[Position] = []
    for row in range(0, len(rows), math.ceil(len(rows) / most) or 1):
        *others, end = rows[row]["places"]
        step = max(1, math.ceil(len(others) / (PER_ROW - 1)))
        positions += [(row, place) for place in [*others[::step], end]]
    return positions


def _check_beneath(
    positions: list[Position],
    base: list[float],
    effect: float,
    log_prob: Callable[[Position], float],
    findings: Findings,
) -> None:
    """Whether the base beneath the adapter is the one on record, at a few of the positions."""
    sample = range(0, len(positions), math.ceil(len(positions) / BENEATH))
    recorded = [base[at] for at in sample]
    gap = _distance(findings.ask_all(LOG_PROBS, log_prob, [positions[at] for at in sample]), recorded)
    findings.report["base_gap"] = gap
    surprise = _distance(recorded, [0.0] * len(recorded))  # mean -log p, with which the error of rounding grows
    if not gap <= max(NOISE, min(0.03 * surprise, 0.25 * effect)):
        findings.reasons.append(
            f"the base beneath the adapter is {gap:.3f} nats a token from the one it was trained on"
        )


def _distance(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(abs(x - y) for x, y in zip(left, right, strict=True)) / len(left)


def _meaning(effect: float) -> str:
    """What too large a distance to the trained model may mean."""
    if effect == math.inf:
        return "these are other weights"
    return (
        f"these are other weights, or rounding hides what training did ({effect:.2f} nats from the base): "
        f"train for longer, or allow more with --serve.max_logprob_gap"
    )
