"""Switches of thinking: taken where they say what the run was trained with."""

from pathlib import Path
from typing import Any

import pytest
from support import tokenizer_families

from lockstep.prompts import template, template_source
from lockstep.serving import request_thinking

PLAIN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# As Qwen3's does: thinking unless it is told not to.
SWITCH = PLAIN.replace(
    "{% endif %}",
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
OFF_BY_DEFAULT = PLAIN.replace(
    "{% endif %}", "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)
ALWAYS = PLAIN.replace("assistant\n", "assistant\n<think>\n")
EFFORT = "{% set reasoning_effort = reasoning_effort or 'medium' %}" + "<|im_start|>system\nReasoning: {{ reasoning_effort }}<|im_end|>" + PLAIN  # fmt: skip


def baked(thinking: bool) -> str:
    return template_source.bake(SWITCH, thinking=thinking)


@pytest.mark.parametrize(
    ("text", "thinks"),
    [(PLAIN, False), (SWITCH, True), (OFF_BY_DEFAULT, False), (ALWAYS, True), (baked(True), True), (baked(False), False)],
)  # fmt: skip
def test_what_asks_for_the_thinking_of_training_is_taken_and_the_rest_refused(
    tiny_model: Path, text: str, thinks: bool
) -> None:
    chat = template.load(tiny_model, text)
    assert request_thinking.thinks(chat) == thinks
    for wish in (True, False):
        for field, value in {
            "enable_thinking": wish,
            "thinking": {"type": "enabled" if wish else "disabled"},
            "think": wish,
            "reasoning_effort": "low" if wish else "none",
            "reasoning": {"effort": "high" if wish else "none", "exclude": False},
            "chat_template_kwargs": {"enable_thinking": wish, "thinking": wish},
        }.items():
            body = {field: value, "n": 1}
            reason = request_thinking.take(body, chat, thinks)
            if wish == thinks:
                assert reason is None and body == {"n": 1}
            else:
                assert reason and reason.startswith(f"{field}: thinking is fixed at training")


@pytest.mark.parametrize(
    "field",
    [
        {"chat_template_kwargs": {}}, {"chat_template_kwargs": {"enable_thinking": None}}, {"reasoning": {}},
        {"reasoning_effort": ""}, {"chat_template_kwargs": {"of_another_model": 1}}, {"thinking": None}, {"thinking": {"type": "adaptive"}},
    ],
)  # fmt: skip
def test_what_says_nothing_is_taken(tiny_model: Path, field: dict[str, Any]) -> None:
    chat = template.load(tiny_model, SWITCH)
    assert request_thinking.take(field, chat, True) is None and field == {}


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "'messages' would change the prompt"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "would change the prompt"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "would change the prompt"),
        ({"chat_template_kwargs": [1]}, "no switch for it"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "no budget of thought"),
        ({"reasoning": {"max_tokens": 9}}, "no switch for it"),
        ({"enable_thinking": "yes"}, "no switch for it"),
    ],
)
def test_what_would_change_the_prompt_is_refused(tiny_model: Path, field: dict[str, Any], why: str) -> None:
    assert why in (request_thinking.take(field, template.load(tiny_model, SWITCH), True) or "")


def test_an_effort_that_the_template_reads_is_compared_by_what_it_renders(tiny_model: Path) -> None:
    chat = template.load(tiny_model, EFFORT)
    assert request_thinking.take({"reasoning_effort": "medium"}, chat, False) is None
    assert "fixed at training" in (request_thinking.take({"reasoning_effort": "high"}, chat, False) or "")


@pytest.mark.parametrize("trained", [True, False])
def test_where_prompts_leave_it_to_the_model_its_training_tells(trained: bool) -> None:
    tokenizer = tokenizer_families.thinking()
    text = tokenizer_families.THINKING.replace("enable_thinking is defined and enable_thinking is false", "false")
    chat = template.Template(tokenizer, text)
    assert chat.thought_marks == ("<think>", "</think>") and not request_thinking.thinks(chat)
    assert request_thinking.thinks(chat, trained) == trained
    assert (request_thinking.take({"enable_thinking": True}, chat, trained) is None) == trained
    reason = request_thinking.take({"enable_thinking": not trained}, chat, trained) or ""
    assert f"and {'on' if trained else 'off'} for this run" in reason
