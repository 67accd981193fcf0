"""Adapters of others, by what stands beside their weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from lockstep.artifacts import filenames
from lockstep.doctor import checking
from lockstep.errors import UserError

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 8, "target_modules": ALL_LINEAR, "base_model_name_or_path": "Qwen/Qwen3-0.6B",
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TOKENIZER = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE}


def codes(folder: Path, config: dict[str, Any], **files: Any) -> list[str]:
    """What is found in an adapter with some files beside its config."""
    (folder / filenames.ADAPTER_CONFIG).write_text(json.dumps(CONFIG | config, indent=2))
    for name, value in files.items():
        (folder / getattr(filenames, name)).write_text(value if isinstance(value, str) else json.dumps(value))
    return [finding.code.removeprefix("seed_fault_") for finding in checking.check([folder])]


def test_a_sound_adapter_has_none(tmp_path: Path) -> None:
    log = {"log_history": [{"loss": 1.0}, {"eval_loss": 1.1}]}
    assert codes(tmp_path, {}, TOKENIZER_CONFIG=TOKENIZER, TRAINER_STATE=log) == []


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({"target_modules": ["v_proj", "q_proj"]}, {}, ["9"]),
        ({"base_model_name_or_path": "unsloth/Qwen3-8B-bnb-4bit"}, {}, ["8"]),
        ({"use_dora": True}, {}, ["7"]),
        ({}, {"TOKENIZER_CONFIG": TOKENIZER | {"eos_token": {"content": "<|endoftext|>"}}}, ["1"]),
        (
            {},
            {
                "TOKENIZER_CONFIG": TOKENIZER | {"eos_token": "<|endoftext|>"},
                "GENERATION_CONFIG": {"eos_token_id": [1, 2]},
            },
            [],
        ),
        ({}, {"TOKENIZER_CONFIG": {"eos_token": "</s>"}}, ["2"]),
        ({}, {"TOKENIZER_CONFIG": {"eos_token": "<|im_end|>"}, "CHAT_TEMPLATE": TEMPLATE}, []),
        ({}, {"TOKENIZER_CONFIG": {}, "CHAT_TEMPLATE": TEMPLATE.replace("<|im_end|>", "<|im_end>")}, ["3"]),
        ({}, {"TRAINER_STATE": {"log_history": [{"loss": 1.0}]}}, ["10"]),
    ],
)
def test_an_adapter_has_the_faults_that_it_has(
    config: dict[str, Any], files: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    assert codes(tmp_path, config, **files) == expected


def test_a_whole_model_is_looked_at_by_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / filenames.CONFIG).write_text('{"model_type": "qwen3"}')
    (tmp_path / filenames.TOKENIZER_CONFIG).write_text(json.dumps(TOKENIZER | {"eos_token": "<|endoftext|>"}))
    assert [finding.code for finding in checking.check([tmp_path])] == ["seed_fault_1"]


def test_one_that_was_trained_here_is_looked_at_by_the_stages(tmp_path: Path) -> None:
    assert codes(tmp_path, {"target_modules": ["v_proj", "q_proj"]}, MANIFEST={}) == []


def test_a_config_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / filenames.ADAPTER_CONFIG).write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        checking.check([tmp_path])
