"""Spoilt models and a hanging engine: what is not the trained model is never served, and says why.

Most starts load vLLM, so this takes minutes: `make test-faults`.
"""

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support import tiny
from support.edits import edit_json, edit_tensors
from support.serving import Home, ask, note_as_compared, refused, reseal, served

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise("What is not the trained model, or hangs, is not served"),
]

ASK = [{"role": "user", "content": "你是谁？"}]


@pytest.fixture(scope="module")
def home(finished: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return finished.copy(tmp_path_factory.mktemp("run") / "home")


def seal_adapter(home: Home) -> None:
    """As if training had written the adapter so, and the base had been made for it."""
    digest = reseal(home.run / "adapter")
    reseal(home.run / "base", {"outputs/r/adapter": digest})
    reseal(home.run / "merged", {"outputs/r/adapter": digest})


# --- each spoils a run and returns (mode, the reason that must be given) ---


def a_line_break_in_the_template(home: Home) -> tuple[str, str]:
    file = home.run / "merged/chat_template.jinja"
    file.write_text(file.read_text().replace("assistant\n", "assistant\n\n"))
    reseal(home.run / "merged")
    return "merged", "become other tokens than in training .*: the chat template differs"


def a_system_prompt_of_its_own(home: Home) -> tuple[str, str]:
    file = home.run / "adapter/chat_template.jinja"
    file.write_text("{{ '<|im_start|>system\nBe nice.<|im_end|>\n' }}" + file.read_text())
    seal_adapter(home)
    return "lora", "become other tokens than in training .*: the chat template differs"


def a_tokenizer_without_some_merges(home: Home) -> tuple[str, str]:
    edit_json(
        home.run / "merged/tokenizer.json", lambda t: t | {"model": t["model"] | {"merges": t["model"]["merges"][:-60]}}
    )
    reseal(home.run / "merged")
    return "merged", "become other tokens than in training .*: the tokenizer differs"


def a_tokenizer_that_folds_letters(home: Home) -> tuple[str, str]:
    edit_json(home.run / "merged/tokenizer.json", lambda t: t | {"normalizer": {"type": "NFKC"}})
    reseal(home.run / "merged")
    return "merged", "become other tokens than in training .*: the tokenizer differs"


def another_end_token(home: Home) -> tuple[str, str]:
    edit_json(home.run / "merged/tokenizer_config.json", lambda t: t | {"eos_token": "<|endoftext|>"})
    reseal(home.run / "merged")
    return "merged", "the tokenizer's eos token is 0, and was 2 in training"


def an_ordinary_token_that_ends(home: Home) -> tuple[str, str]:
    edit_json(home.run / "merged/generation_config.json", lambda g: g | {"eos_token_id": [2, 300]})
    reseal(home.run / "merged")
    return "merged", "generation_config.json ends answers at token 300, which is an ordinary one"


def an_ordinary_token_that_ends_by_the_models_own_config(home: Home) -> tuple[str, str]:
    (home.run / "merged/generation_config.json").unlink()
    edit_json(home.run / "merged/config.json", lambda c: c | {"eos_token_id": [2, 300]})
    reseal(home.run / "merged")
    return "merged", "config.json ends answers at token 300, which is an ordinary one"


def sampling_in_the_generation_config(home: Home) -> tuple[str, str]:
    edit_json(
        home.run / "adapter/generation_config.json", lambda g: g | {"temperature": 1.5, "repetition_penalty": 2.0}
    )
    seal_adapter(home)
    return "lora", "generation_config.json sets repetition_penalty: sampling is the request's business"


def an_adapter_of_zeros(home: Home) -> tuple[str, str]:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = torch.full_like(tensors[name], 1e-9)  # not quite, or the inspection finds it at once

    edit_tensors(home.run / "adapter/adapter_model.safetensors", zero)
    seal_adapter(home)
    return "lora", r"it answers as the base does \(effect of the training -?0\.0\d, which should be 1\)"


def an_adapter_at_another_scale(home: Home) -> tuple[str, str]:
    edit_json(home.run / "adapter/adapter_config.json", lambda c: c | {"lora_alpha": c["lora_alpha"] // 16})
    seal_adapter(home)
    return "lora", "it answers as the base does|the effect of the training is"


def another_base_beneath_the_adapter(home: Home) -> tuple[str, str]:
    other = tiny.model(home.folder / "other", seed=5)
    shutil.copyfile(other / "model.safetensors", home.run / "base/model.safetensors")
    reseal(home.run / "base")
    return "lora", "the base beneath the adapter is .* from the one it was trained on"


def a_merge_that_left_the_adapter_out(home: Home) -> tuple[str, str]:
    shutil.copyfile(home.run / "base/model.safetensors", home.run / "merged/model.safetensors")
    reseal(home.run / "merged")
    return "merged", "it answers as the base does"


def noise_in_one_tensor(home: Home) -> tuple[str, str]:
    def noise(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.norm.weight"
        tensors[name] = tensors[name] * (1 + torch.randn(tensors[name].shape)).to(torch.bfloat16)

    edit_tensors(home.run / "merged/model.safetensors", noise)
    reseal(home.run / "merged")
    return "merged", "its log-probabilities are|the effect of the training is|it answers as the base does"


def a_layer_without_its_adapter(home: Home) -> tuple[str, str]:
    from safetensors.torch import load_file

    base = load_file(home.run / "base/model.safetensors")

    def leave_out(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: base[name] for name in tensors if ".layers.1." in name}

    edit_tensors(home.run / "merged/model.safetensors", leave_out)
    reseal(home.run / "merged")
    return "merged", "these are other weights|the effect of the training is"


SPOILT = [
    a_line_break_in_the_template, a_system_prompt_of_its_own, a_tokenizer_without_some_merges,
    a_tokenizer_that_folds_letters, another_end_token, an_ordinary_token_that_ends,
    an_ordinary_token_that_ends_by_the_models_own_config, sampling_in_the_generation_config,
    an_adapter_of_zeros, an_adapter_at_another_scale, another_base_beneath_the_adapter,
    a_merge_that_left_the_adapter_out, noise_in_one_tensor, a_layer_without_its_adapter,
]  # fmt: skip


OTHER_WEIGHTS = [another_base_beneath_the_adapter, a_merge_that_left_the_adapter_out, noise_in_one_tensor]


@pytest.mark.parametrize("spoil", OTHER_WEIGHTS, ids=lambda spoil: spoil.__name__)
def test_other_weights_are_found_on_disk_before_the_server_starts(home: Home, tmp_path: Path, spoil: Any) -> None:
    spoilt = home.copy(tmp_path / "home")
    mode, _ = spoil(spoilt)
    code, complaint = refused(spoilt, "--serve.mode", mode)
    assert code == 2 and re.search(r"is not the trained model: \S+ differs in [\d,]+ of", complaint), complaint
    assert "starting vLLM" not in complaint and not (spoilt.run / "serve/server.log").exists()


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_what_is_not_the_trained_model_is_refused_with_the_reason(home: Home, tmp_path: Path, spoil: Any) -> None:
    """By what the live server says: files are noted as compared, whatever is in them."""
    spoilt = home.copy(tmp_path / "home")
    mode, reason = spoil(spoilt)
    note_as_compared(spoilt)
    code, complaint = refused(spoilt, "--serve.mode", mode)
    last = complaint.strip().splitlines()[-1]
    assert code == 2 and re.search(f"^error: .*{reason}", last), complaint


def test_what_no_file_says_is_seen_in_the_live_server(home: Home, tmp_path: Path) -> None:
    """The files are sound, and vLLM is told to take another tokenizer."""
    a_tokenizer_without_some_merges(other := home.copy(tmp_path / "other"))
    words = ("--serve.vllm_args", json.dumps({"tokenizer": str(other.run / "merged")}))
    code, complaint = refused(home, *words)
    assert code == 2 and "become other tokens than in training" in complaint, complaint
    report = json.loads((home.run / "serve/gate_report.json").read_text())
    assert report["token_mismatches"] > 0 and not report["passed"]


def test_a_hung_engine_is_closed_within_half_a_minute_and_opened_again(home: Home) -> None:
    with served(home) as server:
        (engine,) = (
            one for one in server.family if "EngineCore" in " ".join(one.cmdline()) or "EngineCore" in one.name()
        )
        psutil.Process(engine.pid).send_signal(signal.SIGSTOP)
        hung = time.monotonic()
        try:
            while ask(f"{server.url}/health")[0] == 200:
                assert time.monotonic() - hung < 30
                time.sleep(0.5)
            assert ask(f"{server.url}/v1/chat/completions", {"messages": ASK})[0] == 503
        finally:
            psutil.Process(engine.pid).send_signal(signal.SIGCONT)
        back = time.monotonic()
        while ask(f"{server.url}/health")[0] != 200:
            assert time.monotonic() - back < 40
            time.sleep(0.5)
        assert ask(f"{server.url}/v1/chat/completions", {"messages": ASK, "max_tokens": 2})[0] == 200
