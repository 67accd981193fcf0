"""Whether answers end at an endpoint where the trained model ends them: at its stop tokens, and nowhere else."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lockstep.verification import plain_tokenizer
from lockstep.verification.endpoint_client import Endpoint, NotOffered
from lockstep.verification.expectation import Expectation
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

FORCED = 100  # logit bias: OpenAI's largest
ORDINARY = 32  # tokens of each kind that must not end an answer
ANSWERS = 8  # held-out rows that are answered as a whole: those with the shortest answers
LONGEST_ANSWER = 128  # tokens of a right answer; on a slow engine fewer
SURE = -0.25  # log-probability of a token that the trained model goes on with
EARLY = 2  # answers that end where it goes on, of which fewer may be chance


def proof(endpoint: Endpoint, expectation: Expectation, weights: Proof) -> Proof:
    """Force stop tokens and ordinary ones, then let held-out rows be answered.

    Args:
        weights: that proof; other weights end answers elsewhere.
    """
    figures: dict[str, Any] = {}
    failures: list[Proof] = []
    forced = _forced(endpoint, expectation)
    if forced is not None:
        ended, figures["endpoint_forced_tokens"] = forced, len(forced)
        failures += _of_forced(expectation, ended)
    rows = [row for row in (expectation.reference or {}).get("rows", ()) if row.get("messages")]
    answered = 0
    if rows and weights.status != FAILED:
        short = sorted(rows, key=lambda row: len(row["input_ids"]) - row["start"])[:ANSWERS]
        short = [row for row in short if len(row["input_ids"]) - row["start"] <= LONGEST_ANSWER]
        answered, more = _of_answers(endpoint, expectation, short, figures) if short else (0, [])
        failures += more
    if failures:
        first = failures[0]
        return Proof(FAILED, figures, first.diagnosis, first.text, first.next)
    if weights.status == FAILED:
        return Proof(
            UNKNOWN, figures, None, "other weights than the trained ones end their answers elsewhere", weights.next
        )
    if forced is None and not answered:
        return Proof(
            UNKNOWN, figures, None,
            "the endpoint takes no logit_bias, and there are no held-out rows to be answered",
            "give rows of the training file (--data)",
        )  # fmt: skip
    ends = f"its stop tokens end answers, and {len(forced) - 1} ordinary ones do not" if forced else ""
    whole = f"stop rate {figures['endpoint_stop_rate']:.0%} of {answered} answers to rows" if answered else ""
    text = "; ".join(filter(None, (ends, whole)))
    if forced is None and figures["endpoint_stop_rate"] < 0.5:
        return Proof(UNKNOWN, figures, None, text, "give more rows of the training file (--data)")
    return Proof(PASSED, figures, None, text)


def _forced(endpoint: Endpoint, expectation: Expectation) -> dict[int, bool] | None:
    """Token → whether an answer ends at it, if it is made to come first; None where the endpoint forces none."""
    end = expectation.contract["special_ids"]["end_of_turn"]
    ordinary = _ordinary(expectation)
    messages = expectation.contract["conversations"][0]["messages"]

    def force(token: int) -> tuple[bool, str]:
        fields: dict[str, Any] = {"logit_bias": {str(token): FORCED}, "max_tokens": 2, "temperature": 0}
        choice = endpoint.chat(messages, **fields)["choices"][0]
        message = choice.get("message") or {}
        text = "".join(str(message.get(part) or "") for part in ("reasoning", "reasoning_content", "content"))
        return choice.get("finish_reason") == "stop", text

    try:
        # Some engines ignore the field: then different tokens give one text.
        if len({force(token)[1] for token in ordinary[:3]}) < 2:
            return None
        tokens = [end, *endpoint.affordable(ordinary)]
        return {token: ends for token, (ends, _) in zip(tokens, endpoint.ask_all(force, tokens), strict=True)}
    except NotOffered:
        return None


def _ordinary(expectation: Expectation) -> list[int]:
    """Tokens after which an answer goes on: the most frequent of answers, and added ones that are not special."""
    stops = set(expectation.contract["stop_ids"])
    rows = (expectation.reference or {}).get("rows", ())
    frequent = Counter(token for row in rows for token in row["input_ids"][row["start"] :])
    if not frequent:
        prompts = (conversation["prompt_ids"] for conversation in expectation.contract["conversations"])
        frequent = Counter(token for prompt in prompts for token in prompt)
    special = set(stops)
    added: list[int] = []
    if expectation.tokenizer is not None:
        tokens = plain_tokenizer.load(expectation.tokenizer).added_tokens_decoder
        special |= {number for number, token in tokens.items() if token.special}
        added = [number for number, token in tokens.items() if not token.special]
    common = [token for token, _ in frequent.most_common() if token not in special][:ORDINARY]
    return list(dict.fromkeys([*common, *(token for token in added[:ORDINARY] if token not in stops)]))


def _of_forced(expectation: Expectation, ended: dict[int, bool]) -> list[Proof]:
    end = expectation.contract["special_ids"]["end_of_turn"]
    failures = []
    if not ended[end]:
        failures.append(
            Proof(
                FAILED, {}, "lost_end_token",
                f"the end-of-turn token {_name(expectation, end)} does not end an answer",
                f"serve the trained model's generation_config.json, with {end} in eos_token_id, or send "
                f'"stop_token_ids": [{end}]',
            )
        )  # fmt: skip
    early = [token for token, ends in ended.items() if ends and token not in expectation.contract["stop_ids"]]
    if early:
        names = ", ".join(_name(expectation, token) for token in early[:3])
        failures.append(
            Proof(
                FAILED, {}, "extra_end_token", f"answers end at {names}, after which training went on",
                "take it out of eos_token_id, and out of stop tokens and texts that server or proxy add",
            )
        )  # fmt: skip
    return failures


def _name(expectation: Expectation, token: int) -> str:
    if expectation.tokenizer is None:
        return str(token)
    return f"{plain_tokenizer.load(expectation.tokenizer).decode([token])!r} ({token})"


def _of_answers(
    endpoint: Endpoint, expectation: Expectation, rows: Sequence[dict[str, Any]], figures: dict[str, Any]
) -> tuple[int, list[Proof]]:
    """(how many rows were answered, failures): whole answers by messages, without sampling."""

    def answer(row: dict[str, Any]) -> tuple[str, str]:
        room = 2 * (len(row["input_ids"]) - row["start"]) + 16
        choice = endpoint.chat(row["messages"], row["tools"], max_tokens=room, temperature=0)["choices"][0]
        return str(choice.get("finish_reason")), str((choice.get("message") or {}).get("content") or "")

    try:
        answers = endpoint.ask_all(answer, rows)
    except NotOffered:
        return 0, []
    rate = sum(reason == "stop" for reason, _ in answers) / len(answers)
    sure = sum(row["end"]["trained"] > SURE for row in rows) / len(rows)  # of ending, once the whole answer is there
    early = [
        row for row, (reason, text) in zip(rows, answers, strict=True)
        if reason == "stop" and _ends_early(expectation, row, text)
    ]  # fmt: skip
    figures |= {"endpoint_answers": len(answers), "endpoint_stop_rate": rate, "endpoint_early_ends": len(early)}
    failures = []
    if len(early) >= EARLY:
        failures.append(
            Proof(
                FAILED, {}, "extra_end_token",
                f"{len(early)} of {len(answers)} answers end where the trained model surely goes on",
                "look for stop texts and tokens that server or proxy add, and at eos_token_id",
            )
        )  # fmt: skip
    if rate == 0 and sure > 0.5 and len(answers) >= 4:
        failures.append(
            Proof(
                FAILED, {}, "lost_end_token",
                f"none of {len(answers)} answers ends by itself, where the trained model ends them",
                "serve the trained model's generation_config.json: its eos_token_id holds the end-of-turn token",
            )
        )  # fmt: skip
    return len(answers), failures


def _ends_early(expectation: Expectation, row: dict[str, Any], text: str) -> bool:
    """Whether an answer is the beginning of the right one and ends where the trained model surely goes on."""
    if expectation.tokenizer is None:
        return False
    tokenizer = plain_tokenizer.load(expectation.tokenizer)
    start, trained = row["start"], dict(zip(row["places"], row["trained"], strict=True))
    for place in range(start, len(row["input_ids"]) - 1):
        begun = tokenizer.decode(row["input_ids"][start:place], skip_special_tokens=True)
        if begun.strip() == text.strip():
            return row["input_ids"][place] not in expectation.contract["stop_ids"] and trained.get(place, -99.0) > SURE
        if len(begun) > len(text) + 8:
            return False
    return False
