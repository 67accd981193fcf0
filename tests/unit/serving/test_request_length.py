"""How long a request may be, by its characters: never less than what the context holds."""

import random
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from support import tiny, tokenizer_families
from transformers import AutoTokenizer

from lockstep.prompts.template import Template
from lockstep.serving.request_fields import CHAT, COMPLETION, TOKENIZE
from lockstep.serving.request_length import LengthBound

FAMILIES: dict[str, tuple[Callable[[], Any], str]] = {
    "tiny": (tiny.tokenizer, tiny.CHATML),
    "llama 3": (tokenizer_families.llama3, tokenizer_families.LLAMA3),
    "gemma": (tokenizer_families.gemma, tokenizer_families.GEMMA),
    "unigram": (tokenizer_families.unigram, tiny.CHATML),
    "qwen3": (lambda: AutoTokenizer.from_pretrained(tiny.SHARED_QWEN3), tiny.CHATML),
}


def bound_of(family: str, tokens: int) -> LengthBound:
    if family == "qwen3" and not tiny.SHARED_QWEN3.exists():
        pytest.skip("the real tokenizer is not at hand")
    make, text = FAMILIES[family]
    return LengthBound(Template(make(), text), tokens)


def texts(chat: Template) -> list[str]:
    """Texts of few tokens for their length, and some as people write them."""
    chosen = random.Random(0)
    vocabulary = chat.tokenizer.get_vocab()
    longest = chat.decode([[vocabulary[piece]] for piece in sorted(vocabulary, key=len)[-20:]])
    made = [piece * 40 for piece in longest]
    made += ["".join(chosen.choice(longest) for _ in range(40)) for _ in range(20)]
    made += [
        " " * 900,
        "\n" * 900,
        "a" * 900,
        "你是谁？" * 200,
        "本宫沈清漪 " * 99,
        "e\u0301" * 300,
        "It is 12:30. " * 80,
    ]
    made += [unicodedata.normalize("NFD", text) for text in ("한국어로 말해 주세요. " * 60, "Tiếng Việt " * 60)]
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_has_fewer_tokens_than_are_counted(family: str) -> None:
    bound = bound_of(family, 1)
    for text in texts(bound.chat):
        tokens = len(bound.chat.encode([text])[0])
        bound.tokens = 1
        assert bound.fewest_tokens(text) <= tokens, text[:40]
        bound.tokens = tokens
        assert bound.refusal(COMPLETION, {"prompt": ["a", text]}) is None
    bound.tokens = 9
    assert bound.refusal(COMPLETION, {"prompt": "tea " * 9 * bound.longest})


@pytest.fixture
def bound() -> LengthBound:
    return LengthBound(Template(tokenizer_families.thinking(), tokenizer_families.THINKING), 64)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(bound: LengthBound) -> None:
    long = "What is this? " * 4000
    ask = {"role": "user", "content": long}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"description": long}}}
    for route, body in (
        (CHAT, {"messages": [ask]}),
        (TOKENIZE, {"messages": [ask]}),
        (COMPLETION, {"prompt": long}),
        (COMPLETION, {"prompt": ["a", long]}),
        (TOKENIZE, {"prompt": long}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}] * 2000}),
        (CHAT, {"messages": [{"role": "system", "content": long}, {"role": "user", "content": "a"}]}),
    ):
        reason = bound.refusal(route, body)
        assert reason and reason.startswith("This model's maximum context length is 64 tokens") and "\n" not in reason
    # without a place in this template, tools take no room in its prompts
    assert bound.refusal(CHAT, {"messages": [{"role": "user", "content": "a"}], "tools": [tool]}) is None
    assert bound.refusal(COMPLETION, {"prompt": [[1] * 9, [2] * 9]}) is None  # vLLM counts these by itself


def test_what_the_template_leaves_out_does_not_count(bound: LengthBound) -> None:
    """Earlier thoughts, which may be longer than all the rest."""
    thought = "So he asks me again. " * 4000
    hi = {"role": "user", "content": "Hi."}
    for answer in ({"content": f"<think>\n{thought}\n</think>\n\nYes."}, {"content": "Yes.", "reasoning": thought}):
        messages = [hi, {"role": "assistant", **answer}, hi]
        assert len(bound.chat.prompt_ids(messages)) < 64
        assert bound.refusal(CHAT, {"messages": messages}) is None


def test_what_cannot_be_rendered_is_left_to_vllm(bound: LengthBound) -> None:
    long = "What is this? " * 4000
    for messages in ([{"role": "user", "content": [long]}], [long], long, [{"content": long}], None):
        assert bound.refusal(CHAT, {"messages": messages} if messages else {}) is None
