"""Encodings are guessed only where they are likely."""

import pytest

from lockstep.text import encodings


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        ("今天天气很好，我们去公园吧。", "gbk", "GBK"), ("今天𠀀天气很好，我们去公园吧。", "gb18030", "GBK"), ('{"问题": "你是谁？"}', "gbk", "GBK"),
        ("今天天氣很好，我們去公園吧。", "big5", "BIG5"), ("abc", "utf-16", "UTF-16"), ("abc", "utf-32", "UTF-32"),
        ("café über naïve", "latin-1", None), ("“a” – €", "cp1252", None), ("кто это такой", "koi8-r", None), ("abc", "ascii", None),
    ],
)  # fmt: skip
def test_likely(text: str, encoding: str, name: str | None) -> None:
    assert encodings.likely(text.encode(encoding)) == name


def test_a_cut_character_and_no_bytes() -> None:
    assert encodings.likely("今天天气很好".encode("gbk")[:-1]) == "GBK"
    assert encodings.likely(b"") is None and encodings.guess(b"\xff") == ""
    assert encodings.guess("今天天气很好".encode("gbk")).endswith(
        "convert it with `iconv -f GB18030 -t UTF-8 OLD > NEW`"
    )
