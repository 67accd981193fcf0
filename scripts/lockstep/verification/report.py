"""What `verify` found, for people: some lines for the terminal, and a self-contained page, in the reader's language."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic
from lockstep.text import language
from lockstep.text.language import phrase
from lockstep.verification.verdict import IN_LOCKSTEP, NOT_IN_LOCKSTEP, PROOFS

PAGE = Path(__file__).with_name("verify_page.html")
QUESTIONS = {
    "weights": "Which weights are these?",
    "adapter": "Does the adapter act?",
    "tokens": "Are these the tokens of the training?",
    "stops": "Does it stop?",
    "sampling": "Is it sampled as was asked for?",
}
STATUSES = {"passed": "passed", "failed": "failed", "unknown": "could not be told"}
NOT_ASKED = "not asked: what was given has none"
DIAGNOSES = {
    "base": "the base, without what was trained",
    "merged_original": "base and adapter in one, on the original weights",
    "merged_dequantized": "base and adapter in one, on NF4 weights",
    "partial": "only a part of what was trained",
    "twice": "what was trained, applied twice",
    "scaled": "what was trained, in another strength",
    "other_template": "another chat template",
    "other_tokens": "another tokenizer",
    "lost_end_token": "the end of an answer is no end token",
    "extra_end_token": "an end token more than in training",
    "other_rope": "another encoding of positions",
    "double_bos": "the beginning token twice",
    "wrong_dtype": "numbers too coarse or too small for the weights",
    "no_effect": "an adapter without effect",
    "other_weights": "other weights",
}
LONGEST = 300  # characters of a figure on the page


def headline(verdict: str) -> tuple[str, str]:
    """A verdict in words, and what it means."""
    if verdict == IN_LOCKSTEP:
        return phrase("In lockstep: it is the model that was trained."), phrase("Every proof that applies has passed.")
    if verdict == NOT_IN_LOCKSTEP:
        return phrase("Not in lockstep: it is another model."), phrase("What differs first is named below.")
    return (
        phrase("Undecided: that it is the trained model could not be proved."),
        phrase("Nothing contradicts it, but a proof lacks what it needs."),
    )


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The results for a terminal, the verdict last."""
    width = max(len(language.translated(name)) for name in PROOFS)
    for name, proof in results["proofs"].items():
        if not proof["applies"]:
            continue
        status = phrase(STATUSES[proof["status"]])
        named = f" ({proof['found']})" if proof["found"] else ""
        text = language.translated(proof["text"])
        yield f"{name:<{width}}  {status}{named}: {text}"
        if proof["next"]:
            yield f"{'':<{width}}  → {language.translated(proof['next'])}"
    yield ""
    yield headline(results["verdict"])[0]


def write(results: Mapping[str, Any], given: Mapping[str, str], file: Path) -> None:
    """Write the page.

    Args:
        results: the content of verify.json.
        given: option → what it was given.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    answer, meaning = headline(results["verdict"])
    proofs = [_shown(name, proof) for name, proof in results["proofs"].items()]
    failed = [proof for proof in proofs if proof["status"] == "failed"]
    statuses = {IN_LOCKSTEP: "passed", NOT_IN_LOCKSTEP: "failed"}
    text = page.render(
        _=phrase,
        translated=language.translated,
        language_code=language.html_code(),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        verdict_status=statuses.get(results["verdict"], "unknown"),
        answer=answer,
        meaning=meaning,
        steps=list(dict.fromkeys(proof["next"] for proof in failed if proof["next"])),
        given=given,
        proofs=proofs,
    )
    with atomic.replacing(file) as stream:  # somebody may be reading the one before
        stream.write(text)


def _shown(name: str, proof: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **proof,
        "name": name,
        "question": phrase(QUESTIONS[name]),
        "answer": phrase(STATUSES[proof["status"]]) if proof["applies"] else phrase(NOT_ASKED),
        "diagnosis": phrase(DIAGNOSES[proof["found"]]) if proof["found"] else "",
        "figures": {key: _figure(value) for key, value in proof["figures"].items()},
    }


def _figure(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 100_000:
        return f"{value:,}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
