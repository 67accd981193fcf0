"""Which encoding bytes are in that are not UTF-8, as far as can be guessed, and how to convert them."""

import codecs

# The marks with which programs begin a file; UTF-32's begins with UTF-16's, so it is asked first.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_COMMON = 0.7  # share of a text's double bytes that must be common characters


def likely(data: bytes) -> str | None:
    """The name that `iconv` has for the likely encoding of bytes that are not UTF-8; None where nothing is likely."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    if _is_gbk(data):
        return "GBK"
    return "BIG5" if _is_big5(data) else None


def guess(data: bytes) -> str:
    """What a message adds about bytes that are not UTF-8: the likely encoding and its cure; empty for neither."""
    name = likely(data)
    if not name:
        return ""
    called = "GB18030" if name == "GBK" else name  # GBK is a part of it
    return f"; it looks like {name}: convert it with `iconv -f {called} -t UTF-8 OLD > NEW`"


def _is_gbk(data: bytes) -> bool:
    """Whether bytes are GBK with mostly common Chinese characters and marks (rows 1 to 55 of GB 2312)."""
    try:
        data.decode("gb18030")
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3:  # a cut at the end says nothing
            return False
    pairs = _pairs(data)
    common = sum(0xA1 <= first <= 0xD7 and second >= 0xA1 for first, second in pairs)
    return bool(pairs) and common >= _COMMON * len(pairs)


def _is_big5(data: bytes) -> bool:
    """Whether bytes are Big5 with mostly common Chinese characters and marks (its first level)."""
    try:
        data.decode("big5")
    except UnicodeDecodeError:
        return False
    pairs = _pairs(data)
    return bool(pairs) and sum(0xA1 <= first <= 0xC6 for first, _ in pairs) >= _COMMON * len(pairs)


def _pairs(data: bytes) -> list[tuple[int, int]]:
    """The double bytes of a text in which only the first byte need be above 0x80."""
    pairs, place = [], 0
    while place + 1 < len(data):
        if data[place] > 0x80:
            pairs.append((data[place], data[place + 1]))
            place += 1
        place += 1
    return pairs
