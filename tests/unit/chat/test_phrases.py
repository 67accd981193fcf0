"""The page says the same in both languages."""

import string
from typing import get_args

from lockstep.chat import phrases
from lockstep.client.request_errors import Code, NoAnswer
from lockstep.errors import UserError


def test_every_phrase_has_both_languages_and_the_same_gaps() -> None:
    def gaps(text: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for key, (english, chinese) in phrases.WORDS.items():
        assert english and chinese, key
        assert gaps(english) == gaps(chinese), key


def test_an_error_is_told_in_chinese_where_it_is_known_and_never_swallowed() -> None:
    text = "no server answers at http://127.0.0.1:8000/v1: start one with `make serve`"
    known = NoAnswer(text, "moment", "no_server")
    assert "make serve" in phrases.error("zh", known) and phrases.error("en", known) == text
    refused = NoAnswer("the server refused (400): too long", "request", "refused")
    assert phrases.error("zh", refused) == "the server refused (400): too long"
    assert phrases.error("zh", UserError("top_k: too small")) == "top_k: too small"


def test_every_translated_error_has_a_code_that_requests_fail_with() -> None:
    assert set(phrases.ERRORS) <= set(get_args(Code))
