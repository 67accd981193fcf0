"""Which characters are Chinese, Japanese or Korean: ranges for the brackets of a regular expression."""

import re

HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs, with extensions and compatibility forms
KANA = "\u3040-\u30ff"
HANGUL = "\uac00-\ud7af"

HAN_OR_KANA = re.compile(f"[{HAN}{KANA}]")
_HAN = re.compile(f"[{HAN}]")


def is_han(char: str) -> bool:
    """Whether a character is a Han ideograph: Chinese, or Japanese kanji."""
    return _HAN.match(char) is not None
