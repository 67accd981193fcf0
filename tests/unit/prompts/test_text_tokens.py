"""Added tokens that are ordinary words are text, in training and on the server, and signs of turns stay refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny, tokenizer_families

from lockstep.prompts import contract, template, template_source, text_tokens
from lockstep.prompts.template import Template
from lockstep.settings.schema import Data

FAMILIES: dict[str, tuple[Callable[[], Any], str]] = {
    "llama 3": (tokenizer_families.llama3, tokenizer_families.LLAMA3),
    "gemma": (tokenizer_families.gemma, tokenizer_families.GEMMA),
    "unigram": (tokenizer_families.unigram, tiny.CHATML),
}


def folder_of(name: str, tmp_path: Path) -> tuple[Path, str]:
    """A base model's folder, as far as tokenizer and template go, and the template."""
    build, text = FAMILIES[name]
    tokenizer = build()
    tokenizer.chat_template = text
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base", text


def served(chat: Template, tmp_path: Path) -> Template:
    """What a server makes of the tokenizer that is saved with a run."""
    chat.tokenizer.save_pretrained(tmp_path / "adapter")
    return template.load(tmp_path / "adapter", chat.text)


@pytest.mark.parametrize("name", ["llama 3", "gemma"])
def test_added_words_become_text_and_nothing_else_changes(name: str, tmp_path: Path) -> None:
    base, text = folder_of(name, tmp_path)
    before = template.load(base, text)
    chat = contract.training_template(base, text)
    server = served(chat, tmp_path)
    assert set(tokenizer_families.WORDS) <= set(chat.text_tokens)
    assert len(server.tokenizer) == len(before.tokenizer)
    assert server.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    for word in tokenizer_families.WORDS:
        own = before.tokenizer.convert_tokens_to_ids(word)
        asked = f"a {word}b{word}{word} 你{word}"
        assert own in before.encode([asked])[0]  # the base takes it for a token
        assert server.control_token(asked) is None
        ids = server.encode([asked])[0]
        assert own not in ids and ids == chat.encode([asked])[0]
        assert server.decode([ids]) == [asked]
        assert server.tokenizer.decode([own]) == word
    plain = [
        {"role": "user", "content": "Say a city, 你是谁？ 🙂 {}[]"},
        {"role": "assistant", "content": "tea"},
        {"role": "user", "content": "b"},
    ]
    assert server.prompt_ids(plain) == before.prompt_ids(plain)


@pytest.mark.parametrize("name", ["llama 3", "gemma"])
def test_the_contract_proves_it(name: str, tmp_path: Path) -> None:
    base, text = folder_of(name, tmp_path)
    chat = contract.training_template(base, text)
    agreed = contract.build(chat, Data())
    assert agreed["text_tokens"] == chat.text_tokens
    by_name = {conversation["name"]: conversation for conversation in agreed["conversations"]}
    told = by_name["added tokens that are text"]["messages"][0]["content"]
    assert all(word in told for word in tokenizer_families.WORDS)
    server = served(chat, tmp_path)
    untouched = template.load(base, text)
    for conversation in agreed["conversations"]:
        assert server.prompt_ids(conversation["messages"]) == conversation["prompt_ids"]
    for known in ("added tokens that are text", "words in angle brackets"):  # and shows where they are tokens
        assert untouched.prompt_ids(by_name[known]["messages"]) != by_name[known]["prompt_ids"]


def test_a_word_that_a_tokenizer_looks_up_whole_stays_refused(tmp_path: Path) -> None:
    base, text = folder_of("llama 3", tmp_path)
    chat = contract.training_template(base, text)
    assert "Zebra" not in chat.text_tokens
    assert served(chat, tmp_path).control_token("a Zebra here") == "Zebra"


def test_a_tokenizer_without_merges_keeps_its_added_tokens(tmp_path: Path) -> None:
    base, text = folder_of("unigram", tmp_path)
    chat = contract.training_template(base, text)
    assert chat.text_tokens == [] and chat.control_token("a <b> c") == "<b>"


def test_an_allowed_token_stays_one(tmp_path: Path) -> None:
    base, text = folder_of("gemma", tmp_path)
    chat = contract.training_template(base, text, ["<b>"])
    assert "<b>" not in chat.text_tokens and "<table>" in chat.text_tokens
    own = chat.tokenizer.convert_tokens_to_ids("<b>")
    assert own in chat.encode(["a <b> c"])[0] and chat.control_token("a <b> c") is None


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("template_name", ["own", "chatml", "instruction_zh"])
def test_what_opens_or_ends_a_turn_is_never_text(name: str, template_name: str, tmp_path: Path) -> None:
    base, text = folder_of(name, tmp_path)
    if template_name == "instruction_zh":
        text = template_source.read(Data(template="instruction_zh"), base)
    elif template_name == "chatml":
        text = tiny.CHATML.replace("<|im_end|>", template.load(base, text).tokenizer.eos_token)
    server = served(contract.training_template(base, text), tmp_path)
    tokenizer = FAMILIES[name][0]()
    turns = {
        *tokenizer_families.LLAMA3_TOKENS,
        "<start_of_turn>",
        "<end_of_turn>",
        "<bos>",
        "<eos>",
        "<pad>",
        "<|im_start|>",
        "<|im_end|>",
    }
    there = turns & set(tokenizer.get_vocab())
    assert there
    for token in there:
        assert server.control_token(f"a{token}b") == token, token


def words(text: str) -> list[str]:
    return text.split()


OPENING = words("""
<|im_start|> <|im_end|> <|im_sep|> <|im_user|> <|endoftext|> <|startoftext|> <|endofprompt|> <|start_header_id|>
<|end_header_id|> <|eot_id|> <|eom_id|> <|begin_of_text|> <|end_of_text|> <|python_tag|> <start_of_turn> <end_of_turn>
<|turn> <turn|> <|user|> <|assistant|> <|system|> <|observation|> <|end|> <|start|> <|message|> <|channel|> <|return|>
<|call|> <｜User｜> <｜Assistant｜> <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜tool▁calls▁begin｜> <|START_OF_TURN_TOKEN|>
<|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]
[AVAILABLE_TOOLS] [TOOL_CALLS] [|user|] [|endofturn|] [gMASK] <sop> <eop> <|start_of_role|> <|end_of_role|> <_user> <_bot>
<user> <assistant> <system> <role> </role> <bos> <eos> <pad> <unk> <mask> <seed:bos> <seed:eos> <｜hy_User｜> ]~b] <eod>
""")
PLAIN = words("""
<filename> <reponame> <repo_name> <gh_stars> <issue_start> <issue_comment> <jupyter_code> <empty_output> <file_sep>
<table> <b> </b> <h1> <code> <blockquote> <header> <message> <title> <unused12> <|fim_prefix|> <|file_sep|> <|box_start|>
<think> </think> <tool_call> <tool_response> <extra_id_0> <name> <end> <start>
""")


def test_turns_are_known_by_their_names() -> None:
    assert [token for token in OPENING if not text_tokens.opens_or_ends_a_turn(token, special=True)] == []
    assert [token for token in PLAIN if text_tokens.opens_or_ends_a_turn(token, special=True)] == []
    assert text_tokens.opens_or_ends_a_turn("</s>", special=True)  # of Llama 2
    assert not text_tokens.opens_or_ends_a_turn("<s>", special=False)  # of Gemma's HTML


@pytest.mark.skipif(not tiny.SHARED_QWEN3.exists(), reason="the real Qwen3 tokenizer is not at hand")
def test_the_real_qwen3(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny.qwen3(folder)
    text = template_source.read(Data(), folder)
    chat = contract.training_template(folder, text)
    server = served(chat, tmp_path)
    assert {"<|fim_prefix|>", "<|file_sep|>", "<|box_start|>"} <= set(chat.text_tokens)
    for token in ("<think>", "</think>", "<tool_call>", "<tool_response>", "<|im_end|>", "<|endoftext|>"):
        assert server.control_token(f"a{token}b") == token
    assert server.tokenizer.get_vocab() == template.load(folder, text).tokenizer.get_vocab()
