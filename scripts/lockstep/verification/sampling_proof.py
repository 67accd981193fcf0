"""Which sampling was not asked for? What generation_config.json asks for, and servers do unless a request says."""

from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.verification.files_expectation import sampling_of
from lockstep.verification.verdict import FAILED, PASSED, Proof

NEUTRAL = {
    "temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "min_p": 0.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "num_beams": 1,
    "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "guidance_scale": 1.0,
    "min_new_tokens": 0, "top_k": 0,
}  # values that change nothing  # fmt: skip
# Bounds of length by which no server ends an answer.
HARMLESS = {"max_length", "do_sample"}


def of_folder(asked: dict[str, Any], folder: Path) -> Proof:
    """Compare a folder's settings with those that base and adapter ask for."""
    return of_settings(asked, sampling_of(folder), paths.label(folder))


def of_settings(asked: dict[str, Any], there: dict[str, Any], label: str) -> Proof:
    """Compare settings by transformers' names."""
    different = {
        name: value
        for name, value in there.items()
        if name not in HARMLESS and asked.get(name, NEUTRAL.get(name)) != value
    }
    figures = {"sampling": there, "not_asked_for": different}
    if different:
        name, value = next(iter(different.items()))
        before = f"{asked[name]} in training" if name in asked else "not set in training"
        text = f"{label} asks for {name} {value} in every answer, {before}"
        hint = f"take {name} out of generation_config.json, or serve with --generation-config vllm"
        return Proof(FAILED, figures, None, text, hint)
    words = ", ".join(f"{name} {value}" for name, value in there.items()) or "none"
    return Proof(PASSED, figures, None, f"sampling by default: {words}, as the base asks for")
