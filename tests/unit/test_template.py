from pathlib import Path

import pytest
import tiny

from lockstep import template
from lockstep.errors import UserError


@pytest.fixture
def chat() -> template.Template:
    return template.Template(tiny.tokenizer(), tiny.CHATML)


@pytest.fixture
def zh() -> template.Template:
    return template.Template(tiny.tokenizer(), template.BUILT_IN["instruction_zh"].read_text(encoding="utf-8"))


def user(text: str) -> list[template.Message]:
    return [{"role": "user", "content": text}]


def test_instruction_zh_renders_the_prompt_of_its_format(zh: template.Template) -> None:
    content = template.fold("翻译成英文\n\n请直译", "人工智能。", "instruction_zh")
    assert zh.render(user(content)) == "### 指令:\n翻译成英文\n\n请直译\n\n### 输入:\n人工智能。\n\n### 回答:\n"
    assert zh.render(user("你是谁？")) == "### 指令:\n你是谁？\n\n### 输入:\n无\n\n### 回答:\n"
    assert zh.render(user(template.fold("你是谁？", " \n", "instruction_zh"))) == zh.render(user("你是谁？"))


def test_instruction_zh_with_a_system_message_and_turns_keeps_each_prompt_a_prefix(zh: template.Template) -> None:
    first = [{"role": "system", "content": "你是甲。"}, *user("一")]
    second = [*first, {"role": "assistant", "content": "答一"}, *user("二")]
    prompt = zh.render(first)
    assert prompt == "你是甲。\n\n### 指令:\n一\n\n### 输入:\n无\n\n### 回答:\n"
    assert zh.render(second).startswith(prompt + "答一<|im_end|>\n\n### 指令:\n二")


def test_instruction_and_input_fold_into_one_message() -> None:
    assert template.fold("Translate", "Hello", "model") == "Translate\nHello"
    assert template.fold("Hi", "", "model") == "Hi"
    assert template.fold("", "Hello", "instruction_zh") == "Hello"


def test_the_answer_is_encoded_apart_and_ends_with_the_end_of_turn(
    chat: template.Template, zh: template.Template
) -> None:
    for one in (chat, zh):
        ids = one.answer_ids("本宫")
        assert ids[-1] == one.end_of_turn == one.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert one.tokenizer.decode(ids) == "本宫<|im_end|>"


def test_prompt_ids_are_the_whole_rendered_prompt(chat: template.Template) -> None:
    ids = chat.prompt_ids(user("你是谁？"))
    assert (
        ids
        == chat.tokenizer("<|im_start|>user\n你是谁？<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)[
            "input_ids"
        ]
    )


@pytest.mark.parametrize("prompt", ["你是甲。", 'quote " and \\ and {{ x }} and {% y %}', "emoji 🙂\nline\ttab", ""])
def test_a_default_system_prompt_is_fixed_in_the_template(prompt: str) -> None:
    baked = template.Template(tiny.tokenizer(), template.bake(tiny.CHATML, prompt))
    system = [{"role": "system", "content": prompt}]
    plain = template.Template(tiny.tokenizer(), tiny.CHATML)
    assert baked.render(user("a")) == plain.render(system + user("a"))
    other = [{"role": "system", "content": "other"}, *user("a")]
    assert baked.render(other) == plain.render(other)


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}\nNext: <|im_end|>{% endfor %}",
    ],
)
def test_a_template_that_would_train_without_an_end_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="would never stop"):
        template.Template(tiny.tokenizer(), text)


def test_a_broken_template_is_one_line() -> None:
    with pytest.raises(UserError, match="the chat template fails"):
        template.Template(tiny.tokenizer(), "{% for m in messages %}{{ m['content'] }}")
    with pytest.raises(UserError, match="the chat template fails"):
        template.Template(tiny.tokenizer(), "{{ raise_exception('no') }}")


def test_every_added_token_is_found_in_content(chat: template.Template) -> None:
    for token in chat.tokenizer.added_tokens_decoder.values():
        assert chat.control_token(f"a{token.content}b") == token.content
    assert chat.control_token("<|im_end> <im_end|> < |im_end|>") is None


def test_an_unknown_template_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instruction_zh"):
        template.source("nothing.jinja", tmp_path, None)


@pytest.mark.skipif(not tiny.SHARED_QWEN3.exists(), reason="the real Qwen3 tokenizer is not at hand")
def test_the_real_qwen3_template_and_tokenizer() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.SHARED_QWEN3)
    chat = template.Template(tokenizer, tokenizer.chat_template)
    assert chat.end_ids == tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    assert chat.control_token("a <think> b") == "<think>"
    rendered = tokenizer.apply_chat_template(user("你好"), add_generation_prompt=True, return_dict=False)
    assert chat.prompt_ids(user("你好")) == rendered
