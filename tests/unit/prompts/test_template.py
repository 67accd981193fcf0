import json
from pathlib import Path

import pytest
from support import tiny

from lockstep.errors import UserError
from lockstep.prompts import template, template_source


@pytest.fixture
def chat() -> template.Template:
    return template.Template(tiny.tokenizer(), tiny.CHATML)


@pytest.fixture
def zh() -> template.Template:
    return template.Template(tiny.tokenizer(), template_source.BUILT_IN["instruction_zh"].read_text(encoding="utf-8"))


def user(text: str) -> list[template.Message]:
    return [{"role": "user", "content": text}]


def test_instruction_zh_renders_the_prompt_of_its_format(zh: template.Template) -> None:
    content = template_source.fold("翻译成英文\n\n请直译", "人工智能。", "instruction_zh")
    assert zh.render(user(content)) == "### 指令:\n翻译成英文\n\n请直译\n\n### 输入:\n人工智能。\n\n### 回答:\n"
    assert zh.render(user("你是谁？")) == "### 指令:\n你是谁？\n\n### 输入:\n无\n\n### 回答:\n"
    assert zh.render(user(template_source.fold("你是谁？", " \n", "instruction_zh"))) == zh.render(user("你是谁？"))


def test_instruction_zh_with_a_system_message_and_turns_keeps_each_prompt_a_prefix(zh: template.Template) -> None:
    first = [{"role": "system", "content": "你是甲。"}, *user("一")]
    second = [*first, {"role": "assistant", "content": "答一"}, *user("二")]
    prompt = zh.render(first)
    assert prompt == "你是甲。\n\n### 指令:\n一\n\n### 输入:\n无\n\n### 回答:\n"
    assert zh.render(second).startswith(prompt + "答一<|im_end|>\n\n### 指令:\n二")


def test_the_answer_is_encoded_apart_and_ends_with_the_end_of_turn(
    chat: template.Template, zh: template.Template
) -> None:
    for renderer in (chat, zh):
        (ids,) = renderer.answer_ids(["本宫"])
        assert ids[-1] == renderer.end_of_turn == renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert renderer.tokenizer.decode(ids) == "本宫<|im_end|>"


def test_prompt_ids_are_the_whole_rendered_prompt(chat: template.Template) -> None:
    ids = chat.prompt_ids(user("你是谁？"))
    assert (
        ids
        == chat.tokenizer("<|im_start|>user\n你是谁？<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)[
            "input_ids"
        ]
    )


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


def test_a_template_that_loops_over_one_row_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "PATIENCE", 0.3)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    chat = template.Template(
        tiny.tokenizer(), tiny.CHATML + "{% if messages[0].content|length == 23 %}" + loops + "{% endif %}"
    )
    assert chat.render(user("x" * 22))
    with pytest.raises(UserError, match="takes more than 0 s for one row"):
        chat.render(user("x" * 23))
    assert chat.render(user("x" * 22))


def test_every_added_token_is_found_in_content(chat: template.Template) -> None:
    for token in chat.tokenizer.added_tokens_decoder.values():
        assert chat.control_token(f"a{token.content}b") == token.content
    assert chat.control_token("<|im_end> <im_end|> < |im_end|>") is None


def test_instruction_zh_has_no_place_for_tools(zh: template.Template) -> None:
    for odd in ({"role": "tool", "content": "3"}, {"role": "assistant", "content": "", "tool_calls": [{}]}):
        with pytest.raises(template.Refused, match="no place"):
            zh.render([*user("a"), odd])
    empty = [{"role": "system", "content": ""}, *user("a")]
    assert zh.render(empty) == zh.render(user("a"))


def test_a_tokenizer_class_that_loses_spaces_is_seen_and_tokenizer_json_taken_instead(tmp_path: Path) -> None:
    """Copies of DeepSeek's models name a class for which transformers 5 replaces the byte-level rules."""
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    file.write_text(json.dumps(settings), encoding="utf-8")
    chat = template.load(tmp_path, tiny.CHATML)
    assert chat.encode(["Be brief. 你是谁？"]) == [tokenizer.encode("Be brief. 你是谁？", add_special_tokens=False)]


@pytest.mark.skipif(not tiny.SHARED_QWEN3.exists(), reason="the real Qwen3 tokenizer is not at hand")
def test_the_real_qwen3_template_and_tokenizer() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.SHARED_QWEN3)
    chat = template.Template(tokenizer, tokenizer.chat_template)
    assert chat.end_ids == tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    assert chat.control_token("a <think> b") == "<think>"
    rendered = tokenizer.apply_chat_template(user("你好"), add_generation_prompt=True, return_dict=False)
    assert chat.prompt_ids(user("你好")) == rendered
