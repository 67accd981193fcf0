"""The gate: before anyone else is let in, the live server proves that it serves the model that was trained.

1. It tokenizes the golden conversations of the contract to the ids that training rendered.
2. Every stop token of the contract ends an answer, and none of the tokens that answers consist of does.
3. Its log-probabilities are those that training put on record, nearer to the trained model than to the base.
4. After whole answers it gives the end-of-turn token the log-probability that the trained model gave.

Then it answers held-out prompts by itself: the share of answers that end is a warning, or a bound if one is set.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic, filenames
from lockstep.prompts import contract, template
from lockstep.serving.probe import Server

# How much is compared: enough to tell. On a CPU vLLM computes some 100 prompt tokens a second with adapters.
ROWS = {"merged": 64, "lora": 24}  # held-out rows
PER_ROW = 4  # tokens of each whose log-probability is compared, the last one among them
CHATS = 20  # golden conversations, the shortest, whose next token is compared
BENEATH = 16  # tokens that the base beneath an adapter is asked for
GO_ON = 64  # tokens that must not end an answer: of each kind
ANSWERS = 16  # held-out prompts that are answered
LONGEST_ANSWER = 256  # tokens
FEW_STOPS = 0.8  # a stop rate below this is worth a warning
AT_ONCE = 16  # requests
NOISE = 0.02  # nats a token by which equal models may differ, computed in bfloat16 by another program


@dataclass(frozen=True)
class Bounds:
    """What the served model may differ by."""

    logprob_gap: float  # nats a token, on the mean
    as_given: bool  # that is what somebody set: else less is allowed where the training itself did little
    min_stop_rate: float | None
    max_model_len: int
    vocabulary: int  # how many token ids the model has


@dataclass
class Findings:
    """What was found about one served name: the report's fields, and why it must not be served."""

    report: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def prove(
    server: Server, mode: str, served: dict[str, tuple[Path, Path]], base_name: str | None, bounds: Bounds
) -> dict[str, Any]:
    """Put all questions to the server; returns gate_report.json's content. `passed` says the outcome.

    Args:
        mode: merged, lora or base.
        served: name that clients send → (folder with the template that is served, the adapter's folder with
            contract and reference); the first one is the run's own.
        base_name: the name of the base beneath the adapters; None where none is served.

    Raises:
        Unanswered: the server fails on a question.
    """
    found = {name: _findings(server, mode, name, *folders, base_name, bounds) for name, folders in served.items()}
    first, *others = found
    whole = {"mode": mode, "model": first, **found[first].report}
    if others:
        whole["others"] = {name: found[name].report for name in others}
    reasons = [f"{name}: {reason}" if others else reason for name in found for reason in found[name].reasons]
    warnings = [f"{name}: {text}" if others else text for name in found for text in found[name].warnings]
    return whole | {"reasons": reasons, "warnings": warnings, "passed": not reasons}


def _findings(
    server: Server, mode: str, name: str, folder: Path, adapter: Path, base_name: str | None, bounds: Bounds
) -> Findings:
    agreed = atomic.read_json(adapter / filenames.CONTRACT)
    recorded = atomic.read_json(adapter / filenames.REFERENCE)
    found = Findings()
    _tokens(server, name, folder, agreed, found)
    if found.reasons:  # other prompts than in training: nothing else can be compared
        return found
    _stops(server, name, agreed, _within_answers(folder, agreed, recorded["rows"], bounds.vocabulary), found)
    rows = [row for row in recorded["rows"] if len(row["input_ids"]) <= bounds.max_model_len]
    if not rows and mode != "base":
        found.reasons.append(f"no held-out row fits into --serve.max_model_len {bounds.max_model_len}: raise it")
    elif mode == "base":
        found.report |= dict.fromkeys(("logprob_gap", "end_token_gap", "differs_from_base", "adapter_effect"))
    else:
        _probabilities(server, name, base_name, rows, bounds, found)
        _chats(server, name, agreed, recorded["golden"], bounds, found)
    # how the base ends its answers is no fault of a training
    _answers(server, name, rows, replace(bounds, min_stop_rate=None) if mode == "base" else bounds, found)
    return found


def _all(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


def foresee(served: dict[str, tuple[Path, Path]]) -> dict[str, Any] | None:
    """Why the gate would stay shut, as far as files say it: a minute before a server could.

    Args:
        served: as in `prove`.

    Returns:
        fields of the report, or None where proofs 1 and 2 have to be put to the server.
    """
    found = (_foreseen(*folders) for folders in served.values())
    return next((report for report in found if report["reasons"]), None)


def _foreseen(folder: Path, adapter: Path) -> dict[str, Any]:
    agreed = atomic.read_json(adapter / filenames.CONTRACT)
    chat = template.load(folder, (folder / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8"))
    conversations = agreed["conversations"]
    wrong = [c["name"] for c in conversations if chat.prompt_ids(c["messages"], c.get("tools")) != c["prompt_ids"]]
    reasons = [_other_tokens(folder, agreed, wrong)] if wrong else _other_ends(folder, agreed, chat)
    return {"prompts": len(conversations), "token_mismatches": len(wrong), "reasons": reasons}


def _other_tokens(folder: Path, agreed: dict[str, Any], wrong: list[str]) -> str:
    text = (folder / filenames.CHAT_TEMPLATE).read_bytes() if (folder / filenames.CHAT_TEMPLATE).exists() else b""
    same_text = hashlib.sha256(text).hexdigest() == agreed["template_sha256"]
    return (
        f"{len(wrong)} of {len(agreed['conversations'])} golden conversations become other tokens than in training "
        f"(first {wrong[0]!r}): the {'tokenizer' if same_text else 'chat template'} differs"
    )


def _other_ends(folder: Path, agreed: dict[str, Any], chat: template.Template) -> list[str]:
    now = chat.special_ids
    reasons = [
        f"the tokenizer's {name} token is {now[name]}, and was {token} in training"
        for name, token in agreed["special_ids"].items()
        if now[name] != token
    ]
    file = folder / filenames.GENERATION_CONFIG
    file = file if file.exists() else folder / filenames.CONFIG  # as vLLM does
    settings = atomic.read_json(file) if file.exists() else {}
    ends, added = settings.get("eos_token_id"), chat.tokenizer.added_tokens_decoder
    return reasons + [
        f"{file.name} ends answers at token {token}, which is an ordinary one"
        for token in (ends if isinstance(ends, list) else [] if ends is None else [ends])
        if token not in agreed["stop_ids"] and not (token in added and added[token].special)
    ]


def _tokens(server: Server, name: str, folder: Path, agreed: dict[str, Any], found: Findings) -> None:
    """Proof 1: the same tokens as in training."""

    def same(one: dict[str, Any]) -> bool:
        asked: dict[str, Any] = {key: one[key] for key in ("messages", "tools") if key in one}
        return bool(server.ask("/tokenize", asked | {"model": name})["tokens"] == one["prompt_ids"])

    conversations = agreed["conversations"]
    wrong = [one["name"] for one, right in zip(conversations, _all(same, conversations), strict=True) if not right]
    found.report |= {"prompts": len(conversations), "token_mismatches": len(wrong)}
    if len(conversations) < contract.FEWEST:
        found.reasons.append(f"{filenames.CONTRACT} holds only {len(conversations)} conversations: it was cut")
    if wrong:
        found.reasons.append(_other_tokens(folder, agreed, wrong))


def _within_answers(folder: Path, agreed: dict[str, Any], rows: list[Any], vocabulary: int) -> list[int]:
    """Tokens that an answer goes on after: the most frequent ones of held-out answers, and those that the tokenizer adds
    as one and not as special tokens, such as <tool_call>."""
    file = folder / filenames.TOKENIZER
    added = atomic.read_json(file)["added_tokens"] if file.exists() else []
    said = Counter(token for row in rows for token in row["input_ids"][row["start"] :])
    found: list[int] = []
    for kind in ([one["id"] for one in added if not one["special"]], [token for token, _ in said.most_common()]):
        found += [token for token in kind if token not in agreed["stop_ids"] and token < vocabulary][:GO_ON]
    return list(dict.fromkeys(found))


def _stops(server: Server, name: str, agreed: dict[str, Any], within: list[int], found: Findings) -> None:
    """Proof 2: made to give a stop token, the server ends the answer there, and goes on after others."""
    prompt = agreed["conversations"][0]["prompt_ids"]

    def ends(token: int) -> bool:
        return bool(server.complete(name, prompt, max_tokens=2, allowed_token_ids=[token])["finish_reason"] == "stop")

    for token, ended in zip(agreed["stop_ids"], _all(ends, agreed["stop_ids"]), strict=True):
        if not ended:
            found.reasons.append(
                f"stop token {token} does not end an answer: special tokens, or the eos_token_id of generation_config.json, differ"
            )
    found.report["ordinary_tokens"] = len(within)
    for token, ended in zip(within, _all(ends, within), strict=True):
        if ended:
            found.reasons.append(
                f"token {token} ends an answer, which in training went on after it: another eos_token_id"
            )


def _probabilities(
    server: Server, name: str, base_name: str | None, rows: list[Any], bounds: Bounds, found: Findings
) -> None:
    """Proofs 3 and 4, on held-out rows."""
    places = _chosen(rows, ROWS["lora" if base_name else "merged"])

    def log_prob(model: str, row: int, place: int) -> float:
        ids = rows[row]["input_ids"]
        choice = server.complete(model, ids[:place], max_tokens=1, logprobs=0, allowed_token_ids=[ids[place]])
        value = choice["logprobs"]["token_logprobs"][0]
        return math.nan if value is None else float(value)

    def on_record(which: str) -> list[float]:
        return [rows[row][which][rows[row]["places"].index(place)] for row, place in places]

    served = _all(lambda where: log_prob(name, *where), places)
    trained = on_record("trained")
    base = on_record("base") if rows[0]["base"] else None
    effect = _distance(trained, base) if base else math.inf  # one of small size leaves less room for error
    bound = bounds.logprob_gap if bounds.as_given else min(bounds.logprob_gap, max(NOISE, 0.25 * effect))
    gap = _distance(served, trained)
    ends = [at for at, (row, place) in enumerate(places) if place == rows[row]["places"][-1]]
    end_gap = _distance([served[at] for at in ends], [trained[at] for at in ends])
    found.report |= {"positions": len(places), "logprob_gap": gap, "end_token_gap": end_gap, "bound": bound}
    if base_name and base:
        _beneath(places, base, effect, lambda where: log_prob(base_name, *where), found)
    _against_base(served, trained, base, found)
    if not found.reasons and not gap <= bound:
        found.reasons.append(
            f"its log-probabilities are {gap:.3f} nats a token from the trained model's (bound {bound:.3f}): {_other(effect)}"
        )
    if not found.reasons and not end_gap <= bound:
        found.reasons.append(
            f"after whole answers the end-of-turn token's log-probability is {end_gap:.3f} nats from the trained model's "
            f"(bound {bound:.3f}): it would stop elsewhere, or {_other(effect)}"
        )


def _other(effect: float) -> str:
    """What a distance to the trained model may mean."""
    if effect == math.inf:
        return "these are other weights"
    return (
        f"these are other weights, or rounding hides what training did ({effect:.2f} nats from the base): train for longer, "
        f"or allow more with --serve.max_logprob_gap"
    )


def _beneath(
    places: list[tuple[int, int]],
    base: list[float],
    effect: float,
    ask: Callable[[tuple[int, int]], float],
    found: Findings,
) -> None:
    """Whether the base beneath the adapter is the one on record, at some of the places."""
    some = range(0, len(places), math.ceil(len(places) / BENEATH))
    recorded = [base[at] for at in some]
    gap = _distance(_all(ask, [places[at] for at in some]), recorded)
    found.report["base_gap"] = gap
    surprise = _distance(recorded, [0.0] * len(recorded))  # at these answers, with which rounding grows
    if not gap <= max(NOISE, min(0.03 * surprise, 0.25 * effect)):
        found.reasons.append(f"the base beneath the adapter is {gap:.3f} nats a token from the one it was trained on")


def _chosen(rows: list[Any], most: int) -> list[tuple[int, int]]:
    """(row, place) of the tokens to compare: of some rows the end, and others evenly before it."""
    chosen = []
    for row in range(0, len(rows), math.ceil(len(rows) / most) or 1):
        *others, end = rows[row]["places"]
        step = max(1, math.ceil(len(others) / (PER_ROW - 1)))
        chosen += [(row, place) for place in [*others[::step], end]]
    return chosen


def _distance(some: list[float], others: list[float]) -> float:
    return sum(abs(one - other) for one, other in zip(some, others, strict=True)) / len(some)


def _against_base(served: list[float], trained: list[float], base: list[float] | None, found: Findings) -> None:
    """How far from the base to the trained model the served one is: 0 at the base, 1 where it should be.

    The slope of the served difference on the trained one; its error says whether that can be told at all.
    """
    if base is None:  # all weights were trained: there is no base of the same kind on record
        found.report |= {"differs_from_base": None, "adapter_effect": None}
        return
    wanted = [one - other for one, other in zip(trained, base, strict=True)]
    got = [one - other for one, other in zip(served, base, strict=True)]
    size = sum(value * value for value in wanted)
    if not size:
        found.report |= {"differs_from_base": False, "adapter_effect": None}
        found.reasons.append("training changed nothing that can be measured: base and trained model are the same")
        return
    slope = sum(one * other for one, other in zip(wanted, got, strict=True)) / size
    rest = sum((have - slope * want) ** 2 for want, have in zip(wanted, got, strict=True))
    error = math.sqrt(rest / max(1, len(wanted) - 1) / size)
    differs = slope > 0.5 and error < 0.25
    found.report |= {
        "differs_from_base": differs,
        "adapter_effect": round(slope, 4),
        "adapter_effect_error": round(error, 4),
    }
    if slope <= 0.5:
        found.reasons.append(
            f"it answers as the base does (effect of the training {slope:.2f}, which should be 1): the adapter is not in it"
        )
    elif abs(slope - 1) > 0.25 + 3 * error:
        found.reasons.append(
            f"the effect of the training is {slope:.2f} of what it should be: the adapter is scaled otherwise"
        )
    elif not differs:
        found.reasons.append(
            f"whether the training has any effect cannot be told (effect {slope:.2f} ± {error:.2f}): train more"
        )


def _chats(
    server: Server, name: str, agreed: dict[str, Any], golden: list[Any], bounds: Bounds, found: Findings
) -> None:
    """Proof 3 once more, as clients ask: messages in, and the likeliest next token of the trained model compared."""
    by_name = {one["name"]: one for one in agreed["conversations"]}
    asked = [one for one in golden if len(by_name[one["name"]]["prompt_ids"]) < bounds.max_model_len]
    asked = sorted(asked, key=lambda one: len(by_name[one["name"]]["prompt_ids"]))[:CHATS]

    def log_prob(one: dict[str, Any]) -> float:
        conversation = by_name[one["name"]]
        body = {
            "model": name, "messages": conversation["messages"], "temperature": 0, "max_tokens": 1,
            "logprobs": True, "allowed_token_ids": [one["trained"]["ids"][0]],
        }  # fmt: skip
        if "tools" in conversation:
            body |= {"tools": conversation["tools"], "tool_choice": "none"}
        content = server.ask("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
        return float(content[0]["logprob"])

    if not asked:
        return
    gap = _distance(_all(log_prob, asked), [one["trained"]["logprobs"][0] for one in asked])
    found.report |= {"chats": len(asked), "chat_gap": gap}
    if not found.reasons and not gap <= 5 * bounds.logprob_gap:  # few positions, far from the data
        found.reasons.append(
            f"asked by messages, it is {gap:.3f} nats a token from the trained model: these are other weights"
        )


def _answers(server: Server, name: str, rows: list[Any], bounds: Bounds, found: Findings) -> None:
    """The stop rate: the share of answers to held-out prompts that end by themselves."""

    def ends(row: dict[str, Any]) -> bool:
        prompt = row["input_ids"][: row["start"]]
        room = min(LONGEST_ANSWER, bounds.max_model_len - len(prompt))
        return bool(server.complete(name, prompt, max_tokens=room)["finish_reason"] == "stop")

    asked = rows[:: max(1, len(rows) // ANSWERS)][:ANSWERS]
    rate = sum(_all(ends, asked)) / len(asked) if asked else None
    found.report |= {"stop_rate": rate, "answers": len(asked)}
    if rate is None:
        return
    said = f"{rate:.0%} of {len(asked)} answers to held-out prompts ended by themselves within {LONGEST_ANSWER} tokens"
    if bounds.min_stop_rate is not None and rate < bounds.min_stop_rate:
        found.reasons.append(f"{said}, and --serve.min_stop_rate is {bounds.min_stop_rate:.0%}")
    elif rate < FEW_STOPS:
        found.warnings.append(f"only {said}")
