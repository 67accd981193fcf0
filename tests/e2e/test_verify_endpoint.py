"""verify on real servers as other people start them, right ones and ones that lie in one way each."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import plain_servers, tiny

from lockstep import paths
from lockstep.verification import endpoint_expectation, endpoint_proofs, subjects
from lockstep.verification.expectation import Expectation
from lockstep.verification.verdict import FAILED, IN_LOCKSTEP, PASSED, UNKNOWN, Proof, verdict

pytestmark = pytest.mark.e2e
BOS = "{{ bos_token }}"


@dataclass(frozen=True)
class Trained:
    """A base, an adapter that PEFT saved, adapters that differ from it, and the merged folder."""

    folder: Path
    expectation: Expectation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    import torch

    folder = tmp_path_factory.mktemp("trained")
    base = tiny.model(folder / "base", initializer_range=0.3, bos_token_id=0)
    template = base / "chat_template.jinja"
    template.write_text(BOS + template.read_text())
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"bos_token": "<|endoftext|>"}))
    for name, seed in (("adapter", 1), ("another", 2)):
        torch.manual_seed(seed)
        model = tiny.peft_adapter(folder / name, base, noise=0.1 if seed == 1 else 0.15, r=8, lora_alpha=16)
        if name == "adapter":
            model.merge_and_unload().to(torch.bfloat16).save_pretrained(folder / "merged")
    for file in base.glob("*"):
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder / "merged")
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    for name, alpha in (("weak", 12), ("strong", 32)):
        shutil.copytree(folder / "adapter", folder / name)
        (folder / name / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
    tiny.rows(folder / "rows.jsonl", 60)
    given = subjects.recognised(base=base, adapter=folder / "adapter", data=folder / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "OUTPUTS", folder / "outputs")
        return Trained(folder, endpoint_expectation.of_subjects(given))


@pytest.fixture(scope="module")
def with_adapters(trained: Trained) -> Iterator[str]:
    names = [f"{name}={trained.folder / name}" for name in ("adapter", "another", "weak", "strong")]
    flags = ["--served-model-name", "base", "--enable-lora", "--max-lora-rank", "8", "--lora-modules", *names]
    with plain_servers.vllm(trained.folder / "base", trained.folder / "adapters.log", *flags) as url:
        yield url


def proofs_of(trained: Trained, url: str, model: str | None = None) -> dict[str, Proof]:
    proofs = endpoint_proofs.endpoint_proofs(trained.expectation, f"{url}/v1", model)
    print({name: (proof.status, proof.diagnosis, proof.text, proof.figures) for name, proof in proofs.items()})  # noqa: T201
    return proofs


def test_a_served_adapter_is_the_trained_model(trained: Trained, with_adapters: str) -> None:
    proofs = proofs_of(trained, with_adapters, "adapter")
    assert verdict(proofs) == IN_LOCKSTEP
    assert proofs["tokens"].figures["endpoint_prompts_with_ids"] > 30
    assert proofs["weights"].figures["endpoint_engine"] == "vLLM"


@pytest.mark.slow
def test_a_served_merge_is_the_trained_model(trained: Trained) -> None:
    with plain_servers.vllm(trained.folder / "merged", trained.folder / "merged.log") as url:
        assert verdict(proofs_of(trained, url)) == IN_LOCKSTEP


@pytest.mark.parametrize(
    ("model", "weights", "adapter"),
    [("base", "base", "no_effect"), ("another", "other_weights", "other_weights"), ("weak", "scaled", None),
     ("strong", "twice", "twice")],
)  # fmt: skip
def test_other_weights_are_named(
    trained: Trained, with_adapters: str, model: str, weights: str, adapter: str | None
) -> None:
    proofs = proofs_of(trained, with_adapters, model)
    assert (proofs["weights"].status, proofs["weights"].diagnosis) == (FAILED, weights)
    if adapter:
        assert (proofs["adapter"].status, proofs["adapter"].diagnosis) == (FAILED, adapter)
    assert proofs["tokens"].status == PASSED


def without_system(path: str, body: Any) -> Any:
    if "messages" in body:
        body["messages"] = [message for message in body["messages"] if message["role"] != "system"]
    return body


def with_system(path: str, body: Any) -> Any:
    if "messages" in body and body["messages"][0]["role"] != "system":
        body["messages"] = [{"role": "system", "content": "Be brief."}, *body["messages"]]
    return body


def with_stop_text(path: str, body: Any) -> Any:
    return {"stop": ['"']} | body if "completions" in path else body


def colder(path: str, body: Any) -> Any:
    return {"temperature": 0.2} | body if "completions" in path else body


def penalised(path: str, body: Any) -> Any:
    return {"repetition_penalty": 1.5} | body if "completions" in path else body


def by_the_base(path: str, body: Any) -> Any:
    return body | {"model": "base"} if "model" in body else body


@pytest.mark.parametrize(
    ("lie", "proof", "diagnosis"),
    [
        (without_system, "tokens", "other_template"),
        pytest.param(with_system, "tokens", "other_template", marks=pytest.mark.slow),
        pytest.param(with_stop_text, "stops", "extra_end_token", marks=pytest.mark.slow),
        (colder, "sampling", None),
        pytest.param(penalised, "sampling", None, marks=pytest.mark.slow),
        (by_the_base, "weights", "base"),
    ],
)
def test_what_stands_before_a_right_server_and_lies_is_caught(
    trained: Trained, with_adapters: str, lie: plain_servers.Change, proof: str, diagnosis: str | None
) -> None:
    with plain_servers.lying(with_adapters, lie) as url:
        proofs = proofs_of(trained, url, "adapter")
    assert (proofs[proof].status, proofs[proof].diagnosis) == (FAILED, diagnosis)


@pytest.mark.slow
def test_behind_a_door_that_lets_only_chats_through_texts_tell(trained: Trained, with_adapters: str) -> None:
    closed = ("/tokenize", "/detokenize", "/version", "/v1/completions", "/openapi.json")

    def no_ids(path: str, answer: Any) -> Any:
        if "choices" in answer:
            answer.pop("prompt_token_ids", None)
            for choice in answer["choices"]:
                choice.pop("token_ids", None)
        return answer

    with plain_servers.lying(with_adapters, answer=no_ids, closed=closed) as url:
        proofs = proofs_of(trained, url, "adapter")
    assert "texts" in proofs["weights"].figures["endpoint_log_probs"]
    assert FAILED not in {proof.status for proof in proofs.values()}
    assert proofs["weights"].status == PASSED


@contextmanager
def other_template(trained: Trained, text: str) -> Iterator[str]:
    file = trained.folder / "other.jinja"
    file.write_text(text)
    flags = ("--chat-template", str(file), "--override-generation-config", '{"temperature": 0.2}')
    with plain_servers.vllm(trained.folder / "merged", trained.folder / "other.log", *flags) as url:
        yield url


@pytest.mark.slow
def test_one_more_bos_is_named(trained: Trained) -> None:
    with other_template(trained, BOS + BOS + tiny.CHATML) as url:
        proofs = proofs_of(trained, url)
    assert (proofs["tokens"].status, proofs["tokens"].diagnosis) == (FAILED, "double_bos")
    assert proofs["weights"].status == PASSED  # asked by ids


@pytest.mark.slow
def test_another_template_and_defaults_of_sampling_are_named(trained: Trained) -> None:
    with other_template(trained, tiny.CHATML) as url:
        proofs = proofs_of(trained, url)
    assert (proofs["tokens"].status, proofs["tokens"].diagnosis) == (FAILED, "other_template")
    assert "plain ChatML" in proofs["tokens"].text


@pytest.mark.slow
def test_a_server_of_transformers_is_not_refused(trained: Trained) -> None:
    with plain_servers.transformers(trained.folder / "merged", trained.folder / "transformers.log") as url:
        proofs = proofs_of(trained, url, str(trained.folder / "merged"))
    assert proofs["weights"].figures["endpoint_engine"] == "transformers"
    assert {proof.status for proof in proofs.values()} <= {PASSED, UNKNOWN}
    assert proofs["tokens"].figures["endpoint_prompts_counted"] > 30
