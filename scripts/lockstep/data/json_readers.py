"""JSON files, record by record: lines of JSONL, or elements of an array, in flat memory."""

import codecs
import json
from collections.abc import Callable

from lockstep.data.records import LARGEST, SHOWN, BrokenFile, Parsed, Parser, Stream, Unreadable, spelled_out
from lockstep.text import json_text
from lockstep.text.json_text import JsonObject

Decode = Callable[[str, int], tuple[object, int]]  # text and place → value, and the place after it


def lines(stream: Stream) -> Parser:
    """The lines of a JSONL file."""
    first = True
    while line := stream.readline(LARGEST + 1):
        if first:
            line, first = line.removeprefix(codecs.BOM_UTF8), False
        if len(line) > LARGEST:
            yield _too_large(line, stream)
            continue
        yield _line(line)


def _line(line: bytes) -> Parsed | Unreadable:
    line = line.removesuffix(b"\n")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Unreadable("bad_utf8", f"byte {error.start + 1} of the line", line.decode("utf-8", "backslashreplace"))
    if not line.strip():
        return Unreadable("blank", "", text)
    try:
        return Parsed(json_text.loads(text), text)
    except ValueError as error:
        return Unreadable("bad_json", str(error), text)
    except RecursionError:
        return Unreadable("bad_json", "nested too deeply", text)


def _too_large(head: bytes, stream: Stream) -> Unreadable:
    """Read on to the end of a line without keeping it."""
    size, last = len(head), head
    while last and not last.endswith(b"\n"):
        last = stream.readline(LARGEST)
        size += len(last)
    return Unreadable("too_large", f"{size} bytes", head[:SHOWN].decode("utf-8", errors="backslashreplace"))


class _Window:
    """A growing window on a file's text. Bytes that are not UTF-8 become lone surrogates, to be noticed later."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.place, self.ended = "", 0, False
        self.more()

    def more(self) -> None:
        """Forget what was used and read as much again as is left, so that a long element costs no square."""
        left = self.text[self.place :]
        chunk = self.stream.read(max(2**20, len(left)))
        self.text, self.place, self.ended = left + self.decoder.decode(chunk, final=not chunk), 0, not chunk

    def next(self) -> str:
        """The next character that is no space, which stays; empty at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self.more()


def elements(stream: Stream) -> Parser:
    """The elements of a JSON array, each decoded as soon as the window holds it as a whole."""
    window = _Window(stream)
    decode = json.JSONDecoder(object_pairs_hook=JsonObject, parse_int=json_text.parse_integer).raw_decode
    window.next()
    window.place += 1  # the "["
    if window.next() == "]":
        window.place += 1
    else:
        while True:
            yield _element(window, decode)
            mark = window.next()
            window.place += 1
            if mark == "]":
                break
            if mark != ",":
                raise BrokenFile(f"{mark!r} where ',' or ']' must stand" if mark else "the array has no end")
            window.next()
    if rest := window.next():
        raise BrokenFile(f"{rest!r} after the array's end")


def _element(window: _Window, decode: Decode) -> Parsed | Unreadable:
    value, end = _decode(window, decode)
    text = window.text[window.place : end]
    window.place = end
    shown = spelled_out(text)
    if len(text) > LARGEST:
        return Unreadable("too_large", f"{len(text)} characters", shown[:SHOWN])
    if shown != text:
        return Unreadable("bad_utf8", "", shown)
    return Parsed(value, text)


def _decode(window: _Window, decode: Decode) -> tuple[object, int]:
    """The value at the window's place and where it ends; reads on until the value is there as a whole."""
    while True:
        try:
            value, end = decode(window.text, window.place)
            # a number may go on in the next block
            if window.ended or window.text[end : end + 1] in (*" \t\r\n,]",) or isinstance(value, str | list | dict):
                return value, end
        except json.JSONDecodeError as error:
            # what stands before the window's end is wrong now and stays so; a string may still be closed
            final = error.pos < len(window.text) - 16 and not error.msg.startswith("Unterminated string")
            if final or window.ended or len(window.text) - window.place > 16 * LARGEST:
                raise BrokenFile(str(error)) from error
        except RecursionError as error:
            raise BrokenFile("nested too deeply") from error
        window.more()
