"""Settings that are mistyped in other tools' words, and configs that are not there."""

from pathlib import Path

import pytest

from lockstep.errors import UserError
from lockstep.settings import field_words, yaml_file
from lockstep.settings.tree import SECTIONS, leaves

NAMES = {name for name, _ in leaves()}


def test_every_word_leads_to_a_setting_that_there_is() -> None:
    assert set(field_words.SETTING_OF.values()) <= NAMES and set(field_words.SECTION_OF.values()) <= set(SECTIONS)
    for word, setting in field_words.SETTING_OF.items():
        assert word not in NAMES and yaml_file.suggest(f"train.{word}") != "", word
        assert f"did you mean {setting}?" in yaml_file.suggest(word), word


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("lr", "train.learning_rate"),
        ("train.lr", "train.learning_rate"),
        ("LR", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("batch_size", "train.per_device_train_batch_size"),
        ("train.epochs", "train.num_train_epochs"),
        ("rank", "lora.r"),
        ("lora.alpha", "lora.lora_alpha"),
        ("max_seq_length", "data.max_length"),
        ("cutoff_len", "data.max_length"),
        ("gpu-memory-utilization", "serve.gpu_memory_utilization"),
        ("max-model-len", "serve.max_model_len"),
        ("port", "serve.port"),
        ("ui.prot", "ui.port"),
        ("seed", "train.seed"),
        ("max_new_tokens", "sampling.max_tokens"),
        ("sampling.temprature", "sampling.temperature"),
        ("model_name_or_path", "model.id"),
    ],
)
def test_the_words_of_other_tools_are_understood(key: str, setting: str) -> None:
    assert f"did you mean {setting}?" in yaml_file.suggest(key)


def test_what_is_nothing_like_a_setting_is_not_guessed() -> None:
    assert yaml_file.suggest("xyzzy") == "" and yaml_file.suggest("xyzzy", {"a": 1}) == ""
    assert "LOCKSTEP_API_KEY" in yaml_file.suggest("serve.api_key")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: 3}", "train.epochs in FILE: no such setting (did you mean train.num_train_epochs?)"),
        ("batch_size: 3", "batch_size in FILE: no such setting (did you mean train.per_device_train_batch_size?)"),
        ("training: {lr: 3}", "training in FILE: no such setting (did you mean the section train?)"),
        ("trian: {learning_rate: 3}", "trian in FILE: no such setting (did you mean the section train?)"),
        ("train: {warmup_ratio: 0.1}", "train.warmup_ratio in FILE: no such setting (did you mean train.warmup_steps? below 1 it is a share of all steps)"),
    ],
)  # fmt: skip
def test_a_config_in_other_tools_words_is_explained(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as refusal:
        yaml_file.load(file, {})
    assert str(refusal.value) == message.replace("FILE", str(file))


def test_a_config_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(UserError, match=rf"did you mean {tmp_path}/mine.yaml\?\); there are .*configs/demo\.yaml"):
        yaml_file.load(tmp_path / "mien.yaml", {})
