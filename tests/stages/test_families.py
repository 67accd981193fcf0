"""Every family of models through stages 00 to 03, with the certificate: right, or refused by name and early.

The tiny models are of transformers' own classes (see support/families.py). `make test` tries one of each kind of
layer; all families by all methods are slow:

    .venv/bin/python -m pytest -m slow tests/stages/test_families.py

With LOCKSTEP_FAMILIES=FILE each outcome is a line of that file, from which write_models.py makes docs/models.md.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import filelock
import pytest
from support import families, family_runs
from support.family_runs import Outcome

METHODS = ("qlora", "lora", "full")
KINDS = ("Qwen3-MoE", "gpt-oss", "LFM2", "Qwen3.5", "Gemma 4 MoE", "BERT", "GPT-2")  # Llama 3 is in every other test
# What is refused: family, methods, the stage, and words of the message.
REFUSED = {
    "T5": (METHODS, "00", "an encoder with a decoder"),
    "BERT": (METHODS, "00", "both directions"),
    "GPT-2": (("qlora", "lora"), "02", "Conv1D"),
}

# Rows of these are padded: attention that Lockstep's own does not compute, on CPUs at least.
OTHERWISE = ("Seed-OSS", "StableLM", "Nemotron", "Bloom", "GLM-5", "Llama 4 text", "GPT-2")


def is_packed(family: families.Family) -> bool:
    """Whether its rows may lie end to end: no state goes from one to the next, and no window is shorter than they are."""
    kinds = ("linear_attention", "sliding_attention")
    return not (
        "hybrid" in family.layers or any(kind in str(family.values) for kind in kinds) or family.name in OTHERWISE
    )


def remember(outcome: Outcome) -> None:
    if name := os.environ.get("LOCKSTEP_FAMILIES"):
        with filelock.FileLock(f"{name}.lock"), Path(name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(outcome), ensure_ascii=False) + "\n")


def check(outcome: Outcome, family: families.Family) -> None:
    """Compare an outcome with what is promised of its family."""
    methods, stage, words = REFUSED.get(family.name, ((), "", ""))
    if outcome.method in methods:
        assert outcome.refusal and words in outcome.refusal, outcome
        assert outcome.stage == stage, outcome
        return
    assert outcome.refusal is None, outcome
    assert outcome.kl_mean is not None and outcome.bound is not None
    assert outcome.kl_mean <= outcome.bound
    assert outcome.packed == is_packed(family), outcome
    assert outcome.share_4bit is not None
    assert outcome.share_4bit == 0 if outcome.method != "qlora" else outcome.share_4bit >= 0.5, outcome
    assert (outcome.experts is not None) == ("experts" in family.layers), outcome
    if outcome.experts:
        adapted, of = outcome.experts
        assert adapted == of, outcome


def tried(name: str, method: str, home: Path) -> None:
    outcome = family_runs.run(families.ALL[name], method, home)
    remember(outcome)
    check(outcome, families.ALL[name])


@pytest.mark.parametrize("name", KINDS)
def test_a_family_of_each_kind_of_layer_is_trained_and_merged_right_or_refused_early(name: str, tmp_path: Path) -> None:
    tried(name, "qlora", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", families.ALL)
def test_every_family_is_trained_and_merged_right_or_refused_early(name: str, method: str, tmp_path: Path) -> None:
    tried(name, method, tmp_path)


def test_a_tiny_model_is_neither_silent_nor_saturated() -> None:
    """Its answers must depend on its layers, so that what a training or a merge does to them shows."""
    import torch

    ids = torch.arange(3, 43)[None]
    for family in families.ALL.values():
        made = families.network(family).float()
        inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if family.name == "T5" else {})
        with torch.no_grad():
            before = made(**inputs).logits.log_softmax(-1)
            for name, weight in made.named_parameters():
                if re.search(r"\b(layers?|h|block)\.0\.", name):
                    weight.mul_(1.05)
            after = made(**inputs).logits.log_softmax(-1)
        assert before.isfinite().all(), family.name
        entropy = -(before.exp() * before).sum(-1).mean()
        assert 0.5 < entropy < 6.2, family.name
        assert (before.exp() * (before - after)).sum(-1).mean() > 1e-6, family.name
