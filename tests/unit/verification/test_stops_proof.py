"""The end token of the training must end an answer, and no other that training went on at."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from lockstep.verification import chats, conversations, sampling_proof, stops_proof
from lockstep.verification.verdict import FAILED, PASSED, Proof


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("verify") / "base")


def proof_of(base: Path, out: Path, generation: dict[str, Any] | None, eos: str | None = None) -> Proof:
    shutil.copytree(base, out)
    if generation is not None:
        (out / "generation_config.json").write_text(json.dumps(generation))
    if eos:
        config = json.loads((out / "tokenizer_config.json").read_text())
        (out / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": eos}))
    return stops_proof.of_folder(chats.of_folder(base), [base], chats.of_folder(out), out)


def test_the_bases_own_end_tokens_pass(base: Path, tmp_path: Path) -> None:
    proof = proof_of(base, tmp_path / "m", None)
    assert proof.status == PASSED and proof.figures["end_of_turn"] in proof.figures["stops"]


def test_an_end_token_that_was_lost_is_named(base: Path, tmp_path: Path) -> None:
    proof = proof_of(base, tmp_path / "m", {"eos_token_id": 0}, "<|endoftext|>")
    assert (proof.status, proof.diagnosis) == (FAILED, "lost_end_token") and "<|im_end|>" in proof.text


def test_an_end_token_more_is_named(base: Path, tmp_path: Path) -> None:
    proof = proof_of(base, tmp_path / "m", {"eos_token_id": [2, 300]})
    assert (proof.status, proof.diagnosis) == (FAILED, "extra_end_token") and "300" in proof.text
    padded = proof_of(base, tmp_path / "p", {"eos_token_id": [2, 0]})
    assert padded.status == PASSED, "<|endoftext|> ends a text, and no answer holds it"


def test_rows_end_with_the_end_token(base: Path, tmp_path: Path) -> None:
    rows = conversations.rows(tiny.rows(tmp_path / "rows.jsonl", 6))
    proof = stops_proof.of_rows(chats.of_folder(base), rows)
    assert proof is not None and proof.status == PASSED


def test_sampling_that_was_not_asked_for_is_named(base: Path, tmp_path: Path) -> None:
    asked = {"temperature": 0.7, "top_p": 0.8}
    assert sampling_proof.of_settings(asked, asked, "m").status == PASSED
    assert sampling_proof.of_settings(asked, {}, "m").status == PASSED
    assert (
        sampling_proof.of_settings({}, {"temperature": 1.0, "max_length": 40, "do_sample": True}, "m").status == PASSED
    )
    proof = sampling_proof.of_settings(asked, asked | {"repetition_penalty": 1.3}, "m")
    assert proof.status == FAILED and "repetition_penalty 1.3" in proof.text
    assert sampling_proof.of_settings(asked, asked | {"top_p": 0.95}, "m").figures["not_asked_for"] == {"top_p": 0.95}
