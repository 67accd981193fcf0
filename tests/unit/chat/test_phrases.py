"""The page says the same in both languages."""

import string

from lockstep.chat import phrases


def test_every_phrase_has_both_languages_and_the_same_gaps() -> None:
    def gaps(text: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for key, (english, chinese) in phrases.WORDS.items():
        assert english and chinese, key
        assert gaps(english) == gaps(chinese), key


def test_an_error_is_told_in_chinese_where_it_is_known_and_never_swallowed() -> None:
    known = "no server answers at http://127.0.0.1:8000/v1: start one with `make serve`"
    assert "make serve" in phrases.error("zh", known) and phrases.error("en", known) == known
    assert phrases.error("zh", "the server refused (400): too long") == "the server refused (400): too long"
