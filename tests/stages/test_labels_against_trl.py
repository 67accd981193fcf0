"""What is supervised here and in TRL, on the same rows; where the two differ is said exactly."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support import tiny

from lockstep.data.collator import IGNORE
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.encoding import Sampler
from lockstep.data.records import Record
from lockstep.prompts import template, template_source
from lockstep.prompts.template import Template
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject

PAIRS = [
    ("Translate into English.\n今晚的月色真好。", "The moon is lovely tonight."),
    ("你是谁？", "本宫沈清漪。"),
    ("Turn the order into JSON: 3 绿茶", '{"item": "绿茶", "quantity": 3}'),
    ("混合 mixed 文本 🙂", "好的 OK 👍🏽，第 2 行\nline two\n\n- 三"),
    ("code?", "```python\ndef f():\n\treturn {'a': 1}\n```"),
    ("a", "b"),
]


def trl_rows(folder: Path, tokenizer: Any) -> list[dict[str, list[int]]]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
            for q, a in PAIRS
        ]
    )
    with TemporaryDirectory() as output:  # the model's folder is shared by many tests
        config = SFTConfig(output_dir=output, max_length=None, report_to="none", use_cpu=True, bf16=False)
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder), args=config, train_dataset=data, processing_class=tokenizer
        )
        return list(trainer.train_dataset)


def ours(chat: Template) -> list[tuple[list[int], list[int]]]:
    rows = [
        ConversationRow(
            ({"role": "user", "content": q}, {"role": "assistant", "content": a}), Record("f", 1, JsonObject([]), "{}")
        )
        for q, a in PAIRS
    ]
    found = []
    for samples in Sampler(chat, Data()).samples(rows):
        assert isinstance(samples, list) and len(samples) == 1
        found.append((samples[0].input_ids, samples[0].labels))
    return found


def compared(folder: Path, chat: Template, trained_after_the_end: str) -> None:
    """TRL's rows are ours, followed by what the template writes after a turn, which TRL supervises, too."""
    more = chat.encode([trained_after_the_end])[0] if trained_after_the_end else []
    for (ids, labels), theirs in zip(ours(chat), trl_rows(folder, chat.tokenizer), strict=True):
        assert theirs["input_ids"] == ids + more
        assert theirs["labels"] == labels + more
        assert [label for label in labels if label != IGNORE][-1] == chat.end_of_turn


def test_a_chatml_template(tiny_model: Path) -> None:
    compared(tiny_model, Template(tiny.tokenizer(), tiny.CHATML), "\n")


def test_the_instruction_zh_template(tiny_model: Path) -> None:
    text = template_source.BUILT_IN["instruction_zh"].read_text(encoding="utf-8")
    compared(tiny_model, Template(tiny.tokenizer(), text), "")


@pytest.mark.skipif(not tiny.SHARED_QWEN3.exists(), reason="the real Qwen3 tokenizer is not at hand")
def test_the_real_qwen3_without_thinking(tmp_path: Path) -> None:
    tiny.qwen3(tmp_path)
    compared(tmp_path, template.load(tmp_path, template_source.read(Data(thinking=False), tmp_path)), "\n")


@pytest.mark.skipif(not tiny.SHARED_QWEN3.exists(), reason="the real Qwen3 tokenizer is not at hand")
def test_the_real_qwen3_as_it_is_writes_an_empty_thought_that_no_prompt_has(tmp_path: Path) -> None:
    """TRL trains the model to say the empty thought; here an answer is the row's text and nothing else."""
    tiny.qwen3(tmp_path)
    chat = template.load(tmp_path, template_source.read(Data(), tmp_path))
    thought = chat.encode(["<think>\n\n</think>\n\n"])[0]
    newline = chat.encode(["\n"])[0]
    for (ids, labels), theirs in zip(ours(chat), trl_rows(tmp_path, chat.tokenizer), strict=True):
        prompt = labels.count(IGNORE)
        assert theirs["input_ids"] == ids[:prompt] + thought + ids[prompt:] + newline
        assert theirs["labels"] == [IGNORE] * prompt + thought + ids[prompt:] + newline
