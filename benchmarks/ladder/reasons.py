"""What a refusal names, in the gate's own words, so that each rung can say which are right."""

import re

# A name → what a reason that was given without one says in that case: those of the checks on disk.
NAMES = {
    "other_weights": r"differs in [\d,]+ of [\d,]+ elements|are other weights|the base beneath the adapter",
    "no_effect": r"no effect|answers as the base does",
    "partial": r"modules are in effect|lacks \d+ of the|is incomplete",
    "other_rope": r"differs from base and adapter in rope",
    "other_window": r"differs from base and adapter in (architectures|model_type|sliding_window)",
    "other_epsilon": r"rms_norm_eps",
    "wrong_dtype": r"is F16 of shape|in dtype",
    "other_template": r"template",
    "other_tokens": r"tokenizer",
    "lost_end_token": r"eos_token_id|does not end an answer|differs from base and adapter in eos",
    "extra_end_token": r"ends answers at token|ends an answer|differs from base and adapter in eos",
    "sampling": r"sampling|in (temperature|top_p|do_sample|repetition_penalty)",
}
# The live gate's proofs, by what their reasons say; the first that matches.
PROOFS = {
    "chats": r"asked by messages",
    "modules": r"modules are in effect|lacks \d+ of the",
    "vocabulary": r"another tokenizer than training",
    "protocols": r"become other tokens at /v1",
    "tokens": r"become other tokens",
    "stops": r"stop token|ends an answer|ends answers",
    "base beneath": r"the base beneath the adapter",
    "effect of training": r"scaled otherwise|answers as the base does",
    "long row": r"beyond \d+ tokens",
    "whole vocabulary": r"all over the vocabulary",
    "end tokens": r"after whole answers",
    "single places": r"places it is up to",
    "log-probabilities": r"nats",
}


def names_in(reason: str, given: str | None) -> set[str]:
    """Everything that a reason names.

    Args:
        given: the gate's own name for it.
    """
    return {given} if given else {name for name, pattern in NAMES.items() if re.search(pattern, reason)}


def proof_of(reason: str) -> str:
    """Which of the live gate's proofs gave a reason."""
    return next((name for name, pattern in PROOFS.items() if re.search(pattern, reason)), "other")
