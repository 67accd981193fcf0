"""verify on llama.cpp's own server; skipped where LLAMACPP_PYTHON names no environment with requirements-llamacpp.lock."""

import json
import shutil
from pathlib import Path

import pytest
from support import llama_cpp, tiny

from lockstep import paths
from lockstep.verification import endpoint_expectation, endpoint_proofs, subjects
from lockstep.verification.expectation import Expectation
from lockstep.verification.verdict import FAILED, PASSED, Proof

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not llama_cpp.PYTHON, reason="LLAMACPP_PYTHON is not set"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("trained")
    base = tiny.model(folder / "base", initializer_range=0.3, bos_token_id=0)
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"bos_token": "<|endoftext|>"}))
    merged = tiny.peft_adapter(folder / "adapter", base, r=8, lora_alpha=16).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(folder / "merged")
    for file in base.glob("*"):
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder / "merged")
    tiny.rows(folder / "rows.jsonl", 60)
    return folder


@pytest.fixture(scope="module")
def expectation(folder: Path) -> Expectation:
    given = subjects.recognised(base=folder / "base", adapter=folder / "adapter", data=folder / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "OUTPUTS", folder / "outputs")
        return endpoint_expectation.of_subjects(given)


def proofs_of(expectation: Expectation, file: Path, *sampling: str) -> dict[str, Proof]:
    with llama_cpp.served(file, *sampling) as url:
        return endpoint_proofs.endpoint_proofs(expectation, f"{url}/v1")


def test_a_right_file_is_the_trained_model(folder: Path, expectation: Expectation) -> None:
    proofs = proofs_of(expectation, llama_cpp.gguf(folder / "merged", folder / "right.gguf", dtype="F32", pre="gpt-2"))
    assert proofs["weights"].figures["endpoint_engine"] == "llama.cpp"
    assert {name: proof.status for name, proof in proofs.items() if proof.status != PASSED} == {}


def test_the_base_s_file_is_named(folder: Path, expectation: Expectation) -> None:
    proofs = proofs_of(expectation, llama_cpp.gguf(folder / "base", folder / "base.gguf", dtype="F32", pre="gpt-2"))
    assert (proofs["weights"].status, proofs["weights"].diagnosis) == (FAILED, "base")


def test_one_more_bos_by_the_file_s_flag_is_named(folder: Path, expectation: Expectation) -> None:
    file = folder / "bos.gguf"
    llama_cpp.gguf(folder / "merged", file, dtype="F32", pre="gpt-2", add_bos_token=True)
    proofs = proofs_of(expectation, file)
    assert (proofs["tokens"].status, proofs["tokens"].diagnosis) == (FAILED, "double_bos")


def test_sampling_of_the_server_s_own_is_named(folder: Path, expectation: Expectation) -> None:
    file = llama_cpp.gguf(folder / "merged", folder / "cold.gguf", dtype="F32", pre="gpt-2")
    proofs = proofs_of(expectation, file, "temp=0.2")
    assert proofs["sampling"].status == FAILED and "0.2" in proofs["sampling"].text
