import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import served_families, tiny, tokenizer_families

from lockstep.errors import UserError
from lockstep.prompts import template_source
from lockstep.serving import model_flags


def folder(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_plain_model_needs_no_flags_but_training_s_tokenizer(tmp_path: Path) -> None:
    plain = folder(tmp_path, architectures=["LlamaForCausalLM"], model_type="llama")
    assert model_flags.arguments(plain, cuda=False) == ["--tokenizer-mode", "hf"]
    model_flags.check(plain, cuda=False)


@pytest.mark.parametrize("architecture", ["Gemma3ForConditionalGeneration", "AnotherForConditionalGeneration"])
def test_a_wrapper_is_started_for_text_only(tmp_path: Path, architecture: str) -> None:
    wrapper = folder(tmp_path, architectures=[architecture], text_config={"vocab_size": 512})
    assert "--language-model-only" in model_flags.arguments(wrapper, cuda=False)


def test_gpt_oss_is_rendered_by_its_template(tmp_path: Path) -> None:
    flags = model_flags.arguments(
        folder(tmp_path, architectures=["GptOssForCausalLM"], model_type="gpt_oss"), cuda=False
    )
    assert json.loads(flags[flags.index("--hf-overrides") + 1]) == {"model_type": "gpt_oss_by_template"}


@pytest.mark.parametrize("cuda", [False, True])
def test_a_class_that_could_not_be_imported_is_refused_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    wrapper = folder(tmp_path, architectures=["Qwen3_5ForConditionalGeneration"])
    monkeypatch.setitem(sys.modules, "torchvision", None)  # an import of it fails
    with pytest.raises(UserError, match="Qwen3_5ForConditionalGeneration imports torchvision") as caught:
        model_flags.check(wrapper, cuda)
    assert ("+cpu --index-url" in str(caught.value)) != cuda and "\n" not in str(caught.value)
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.syspath_prepend(served_families.STANDINS)
    model_flags.check(wrapper, cuda)
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_packages_version_is_the_gpu_sets() -> None:
    lock = Path(model_flags.__file__).parents[3] / "requirements.lock"
    assert model_flags.TORCHVISION in lock.read_text(encoding="utf-8").splitlines()


def test_heads_are_turned_by_torch_where_vllms_kernel_for_cpus_turns_them_wrongly(tmp_path: Path) -> None:
    model = folder(tmp_path, architectures=["Lfm2ForCausalLM"])
    flags = model_flags.arguments(model, cuda=False)
    assert json.loads(flags[flags.index("--compilation-config") + 1]) == {"custom_ops": ["-rotary_embedding"]}
    assert "--compilation-config" not in model_flags.arguments(model, cuda=True)


def test_what_vllm_computes_on_gpus_only_is_refused_on_cpus(tmp_path: Path) -> None:
    experts = folder(tmp_path, architectures=["NemotronHForCausalLM"], n_routed_experts=8)
    with pytest.raises(UserError, match=r"NemotronHForCausalLM on GPUs only \(experts without gates\)"):
        model_flags.check(experts, cuda=False)
    model_flags.check(experts, cuda=True)
    model_flags.check(folder(tmp_path, architectures=["NemotronHForCausalLM"]), cuda=False)


def answering(folder: Path, text: str, thinking: bool | None = None, rows: int = 0) -> Path:
    """A folder as a server answers with: tokenizer, template and contract."""
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(template_source.bake(text, thinking=thinking), encoding="utf-8")
    tokenizer_families.thinking().save_pretrained(folder)
    (folder / "contract.json").write_text(json.dumps({"rows_with_thoughts": rows}))
    return folder


def test_thoughts_are_parsed_where_answers_hold_them(tmp_path: Path) -> None:
    parser = ["--reasoning-parser", "lockstep", "--reasoning-parser-plugin", str(model_flags.THOUGHT_PARSER)]
    thinking, opening = tokenizer_families.THINKING, tokenizer_families.OPENING
    for place, (text, fixed, rows, flags) in enumerate(
        (
            (thinking, None, 0, parser),  # a plain answer stays one
            (thinking, True, 9, parser),
            (thinking, False, 9, []),
            (opening, None, 9, parser),
            (opening, None, 0, []),  # trained to answer within the thought, and never to end it
        )
    ):
        folder = answering(tmp_path / str(place), text, fixed, rows)
        assert model_flags.of_thoughts(["--tokenizer-mode", "hf"], folder, {}) == flags, place
        assert model_flags.of_thoughts([], folder, {"--reasoning-parser": "qwen3"}) == []
        assert model_flags.of_thoughts(["--reasoning-parser", "deepseek_v3"], folder, {}) == []
    assert model_flags.THOUGHT_PARSER.exists()
    plain = answering(tmp_path / "plain", tiny.CHATML)
    tiny.tokenizer().save_pretrained(plain)
    assert model_flags.of_thoughts([], plain, {}) == []
