import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import served_families

from lockstep.errors import UserError
from lockstep.serving import model_flags


def folder(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_plain_model_needs_no_flags_but_training_s_tokenizer(tmp_path: Path) -> None:
    plain = folder(tmp_path, architectures=["LlamaForCausalLM"], model_type="llama")
    assert model_flags.arguments(plain) == ["--tokenizer-mode", "hf"]
    model_flags.check_imports(plain, cuda=False)


def test_a_wrapper_is_started_for_text_only(tmp_path: Path) -> None:
    wrapper = folder(tmp_path, architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3")
    assert "--language-model-only" in model_flags.arguments(wrapper)


def test_gpt_oss_is_rendered_by_its_template(tmp_path: Path) -> None:
    flags = model_flags.arguments(folder(tmp_path, architectures=["GptOssForCausalLM"], model_type="gpt_oss"))
    assert json.loads(flags[flags.index("--hf-overrides") + 1]) == {"model_type": "gpt_oss_by_template"}


@pytest.mark.parametrize("cuda", [False, True])
def test_a_class_that_could_not_be_imported_is_refused_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    wrapper = folder(tmp_path, architectures=["Qwen3_5ForConditionalGeneration"])
    monkeypatch.setitem(sys.modules, "torchvision", None)  # an import of it fails
    with pytest.raises(UserError, match="Qwen3_5ForConditionalGeneration imports torchvision") as caught:
        model_flags.check_imports(wrapper, cuda)
    assert ("+cpu --index-url" in str(caught.value)) != cuda and "\n" not in str(caught.value)
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.syspath_prepend(served_families.STANDINS)
    model_flags.check_imports(wrapper, cuda)
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_packages_version_is_the_gpu_sets() -> None:
    lock = Path(model_flags.__file__).parents[3] / "requirements.lock"
    assert model_flags.TORCHVISION in lock.read_text(encoding="utf-8").splitlines()
