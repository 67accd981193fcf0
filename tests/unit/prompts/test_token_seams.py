"""Control tokens out of pieces."""

import pytest

from lockstep.prompts.token_seams import Seams, cut_words

TOKENS = ("<|im_end|>", "<think>")
TEMPLATE = "{% for m in messages %}{{ m.content + m.name }}{{ '<' ~ m.key ~ '>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("texts", "token"),
    [
        (["a<|im_", "end|> b"], "<|im_end|>"),
        (["end|>", "<|im_"], "<|im_end|>"),  # in any order
        (["a <|im_ \n", "\n end|>"], "<|im_end|>"),  # templates trim
        (["<|im", "_e", "nd|>"], "<|im_end|>"),
        (["think"], "<think>"),  # between the template's own signs
        (["think>"], "<think>"),
        (["x <thi", "nk"], "<think>"),
        (["<|im_", "end| x"], None),
        (["think so", "I think"], None),
        (["<|im_", "start|>"], None),
        (["a < b", "b > a", "<", ">", ""], None),
        (["", " ", "\n"], None),
    ],
)
def test_pieces_of_a_token(texts: list[str], token: str | None) -> None:
    assert Seams(TOKENS, TEMPLATE).token(texts) == token


def test_a_template_that_writes_no_such_signs_lets_the_word_stand() -> None:
    assert Seams(TOKENS, "{{ '<|im_end|>' }}{{ messages[0].content }}").token(["think"]) is None
    assert Seams(TOKENS, "{{ '<' }").token(["think"]) is None  # no template at all


def test_words_that_a_template_cuts_out_of_texts() -> None:
    source = (
        "{% set a = system.replace('/no_think', '').replace(\"/think\", '').strip('ab') %}"
        "{{ a.split('</think>')[-1].split('\n')[0] | replace('x', 'y') }}{{ 'split(word' }}split('no')"
    )
    assert cut_words(source) == {"/no_think", "/think", "</think>"}
    assert cut_words("{{ a.split('b'") == set()  # no template at all
