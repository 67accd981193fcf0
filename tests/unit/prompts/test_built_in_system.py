import pytest
from support import tiny

from lockstep.prompts import built_in_system, template_source
from lockstep.prompts.template import Template

OWN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a tiny one.<|im_end|>\n{% endif %}" + tiny.CHATML
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.CHATML
FOLDED = (
    "{% for message in messages if message.role != 'system' %}<|im_start|>{{ message.role }}\n"
    "{% if loop.first and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (tiny.CHATML, ""),
        (OWN, "You are a tiny one."),
        (template_source.bake(tiny.CHATML, "你是甄嬛。\n简短。"), "你是甄嬛。\n简短。"),
        (template_source.bake(OWN, "Baked."), "Baked."),
        (STRICT, ""),
        (FOLDED, ""),
        (template_source.bake(FOLDED, "Baked."), "Baked."),
        (template_source.BUILT_IN["instruction_zh"].read_text(encoding="utf-8"), ""),
    ],
)
def test_what_a_template_writes_where_a_conversation_brings_no_system_message(text: str, prompt: str) -> None:
    assert built_in_system.of_template(Template(tiny.tokenizer(), text)) == prompt
