"""Where a template comes from, and what is written into it."""

import datetime
from pathlib import Path

import pytest
from support import tiny

from lockstep.errors import UserError
from lockstep.prompts import template, template_source
from lockstep.settings.schema import Data


def user(text: str) -> list[template.Message]:
    return [{"role": "user", "content": text}]


def test_instruction_and_input_fold_into_one_message() -> None:
    assert template_source.fold("Translate", "Hello", "model") == "Translate\nHello"
    assert template_source.fold("Hi", "", "model") == "Hi"
    assert template_source.fold("", "Hello", "instruction_zh") == "Hello"


@pytest.mark.parametrize("prompt", ["你是甲。", 'quote " and \\ and {{ x }} and {% y %}', "emoji 🙂\nline\ttab", ""])
def test_a_default_system_prompt_is_fixed_in_the_template(prompt: str) -> None:
    baked = template.Template(tiny.tokenizer(), template_source.bake(tiny.CHATML, prompt))
    system = [{"role": "system", "content": prompt}]
    plain = template.Template(tiny.tokenizer(), tiny.CHATML)
    assert baked.render(user("a")) == plain.render(system + user("a"))
    other = [{"role": "system", "content": "other"}, *user("a")]
    assert baked.render(other) == plain.render(other)


def test_an_unknown_template_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instruction_zh"):
        template_source.read(Data(template="nothing.jinja"), tmp_path)
    with pytest.raises(UserError, match="instruction_zh"):
        template_source.read(Data(), tmp_path)


DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + ' ' + strftime_now(\"%Y\") }}" + tiny.CHATML


def test_the_date_in_a_template_is_fixed() -> None:
    baked = template.Template(tiny.tokenizer(), template_source.bake(DATED, date=datetime.date(2025, 1, 9)))
    assert baked.render(user("a")).startswith("Today: 09 Jan 2025 2025<|im_start|>user")
    assert template_source.bake(tiny.CHATML, date=datetime.date(2025, 1, 9)) == tiny.CHATML
    with pytest.raises(UserError, match="cannot be fixed"):
        template_source.bake("{{ strftime_now(form) }}")


THINKING = tiny.CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)


def test_the_thinking_flag_is_fixed_whatever_a_request_says() -> None:
    for flag, count in ((False, 1), (True, 0), (None, 0)):
        chat = template.Template(tiny.tokenizer(), template_source.bake(THINKING, thinking=flag))
        assert chat.render(user("a")).count("<think>") == count
    chat.tokenizer.chat_template = template_source.bake(THINKING, thinking=False)
    asked = chat.tokenizer.apply_chat_template(
        user("a"), tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert asked.count("<think>") == 1
    with pytest.raises(UserError, match="no thinking flag"):
        template_source.bake(tiny.CHATML, thinking=False)


def test_system_prompt_thinking_and_date_together() -> None:
    text = "{{ strftime_now('%Y') }}\n" + THINKING
    chat = template.Template(tiny.tokenizer(), template_source.bake(text, "你是甲。", False))
    assert chat.render(user("a")) == "2024\n<|im_start|>system\n你是甲。<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"  # fmt: skip
