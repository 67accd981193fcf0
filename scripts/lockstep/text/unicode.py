"""Characters that a file, a terminal or a C string cannot hold."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")


def drop_controls(text: str) -> str:
    """The text without control characters; tabs and line breaks stay."""
    return _CONTROL.sub("", text)


def printable(text: str) -> str:
    """The text with lone surrogates, which no file can hold, written as escapes such as \\ud83d."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
