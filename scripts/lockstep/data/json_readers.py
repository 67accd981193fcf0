"""JSON files, record by record, in flat memory: lines of JSONL, elements of an array, objects one after another."""

import codecs
import contextlib
import json
import re

from lockstep.data.records import (
    DAMAGE,
    LARGEST,
    SHOWN,
    BrokenFile,
    Parsed,
    Parser,
    Place,
    Stream,
    Unreadable,
    spelled_out,
)
from lockstep.text import encodings, json_text
from lockstep.text.json_text import JsonObject

_SPACES = re.compile(r"[ \t\r\n]*")
_decode_at = json.JSONDecoder(object_pairs_hook=JsonObject, parse_int=json_text.parse_integer).raw_decode


def lines(stream: Stream, at: Place | None = None) -> Parser:
    """The lines of a JSONL file."""
    at = at or Place()
    at.line = 0
    while line := stream.readline(LARGEST + 1):
        at.line += 1
        if at.line == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > LARGEST:
            yield _too_large(line, stream)
            continue
        yield _line(line)


def _line(line: bytes) -> Parsed | Unreadable:
    line = line.removesuffix(b"\n")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte {error.start + 1} of the line{encodings.guess(line)}"
        return Unreadable("bad_utf8", detail, line.decode("utf-8", "backslashreplace"))
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
    """A growing window on a file's text. Bytes that are not UTF-8 become lone surrogates, to be noticed later.

    Attributes:
        place: how much of the text was used.
        line: the physical line of that place, from 1.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.place, self.line, self.ended = "", 0, 1, False
        self.more()

    def more(self) -> None:
        """Forget what was used and read as much again as is left, so that a long element costs no square."""
        left = self.text[self.place :]
        chunk = self.stream.read(max(2**20, len(left)))
        self.text, self.place, self.ended = left + self.decoder.decode(chunk, final=not chunk), 0, not chunk

    def advance(self, place: int) -> None:
        """Use the text up to a place."""
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def next(self) -> str:
        """The next character that is no space, which stays; empty at the end."""
        while True:
            spaces = _SPACES.match(self.text, self.place)
            assert spaces
            self.advance(spaces.end())
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self.more()

    def take(self, expected: str) -> None:
        """Use the next character that is no space. Raises BrokenFile where it is another one."""
        mark = self.next()
        if mark != expected:
            raise BrokenFile(f"line {self.line}: {mark!r} where {expected!r} must stand")
        self.advance(self.place + 1)

    def value(self, most: int = 16 * LARGEST) -> tuple[object, str]:
        """The value that begins here, and how it is written; reads on until it is there as a whole.

        Args:
            most: characters that it may have, about.

        Raises:
            BrokenFile: not JSON, or too long.
        """
        while True:
            try:
                value, end = _decode_at(self.text, self.place)
                # a number may go on in the next block
                if self.ended or self.text[end : end + 1] in (*" \t\r\n,]",) or isinstance(value, str | list | dict):
                    text = self.text[self.place : end]
                    self.advance(end)
                    return value, text
            except json.JSONDecodeError as error:
                # what stands before the window's end is wrong now and stays so; a string may still be closed
                final = error.pos < len(self.text) - 16 and not error.msg.startswith("Unterminated string")
                if final or self.ended or len(self.text) - self.place > most:
                    line = self.line + self.text.count("\n", self.place, error.pos)
                    raise BrokenFile(f"line {line}: {error.msg}{self._encoding()}") from error
            except RecursionError as error:
                raise BrokenFile(f"line {self.line}: nested too deeply") from error
            self.more()

    def _encoding(self) -> str:
        """What a message adds where the text is none: half a character of another encoding can be a JSON mark."""
        text = self.text[self.place : self.place + SHOWN]
        return "" if spelled_out(text) == text else encodings.guess(text.encode("utf-8", "surrogateescape"))


def elements(stream: Stream, at: Place | None = None) -> Parser:
    """The elements of a JSON array, each decoded as soon as the window holds it as a whole."""
    window = _Window(stream)
    yield from _array(window, at or Place())
    if rest := window.next():
        raise BrokenFile(f"line {window.line}: {rest!r} after the array's end")


def _array(window: _Window, at: Place) -> Parser:
    at.line = window.line
    window.take("[")
    if window.next() == "]":
        window.advance(window.place + 1)
        return
    while True:
        window.next()
        at.line = window.line
        yield _record(window)
        mark = window.next()
        at.line = window.line
        window.advance(window.place + 1)
        if mark == "]":
            return
        if mark != ",":
            where = f"line {at.line}: "
            raise BrokenFile(where + (f"{mark!r} where ',' or ']' must stand" if mark else "the array has no end"))


def objects(stream: Stream, at: Place | None = None) -> Parser:
    """JSON objects one after another, each on as many lines as it likes."""
    window, at = _Window(stream), at or Place()
    while window.next():
        at.line = window.line
        yield _record(window)


def wrapped(stream: Stream, key: str, at: Place | None = None) -> Parser:
    """The elements of the array that stands under `key` in the one object of a file.

    Raises:
        BrokenFile: not JSON to its end, or beside this array another list of objects.
    """
    window, at = _Window(stream), at or Place()
    window.take("{")
    mark = ","
    while mark == ",":
        window.next()
        name, _ = window.value()
        window.take(":")
        window.next()
        if name == key:
            yield from _array(window, at)
        else:
            value, _ = window.value()
            if isinstance(value, list) and any(isinstance(element, dict) for element in value):
                raise BrokenFile(f"beside {key}, {name} holds rows, too: save each list as a file of its own")
        mark = window.next()
        at.line = window.line
        window.advance(window.place + 1)
    if mark != "}":
        raise BrokenFile(f"line {at.line}: {mark!r} where ',' or '}}' must stand")
    if rest := window.next():
        raise BrokenFile(f"line {window.line}: {rest!r} after the object's end")


def _record(window: _Window) -> Parsed | Unreadable:
    value, text = window.value()
    shown = spelled_out(text)
    if len(text) > LARGEST:
        return Unreadable("too_large", f"{len(text)} characters", shown[:SHOWN])
    if shown != text:
        return Unreadable("bad_utf8", encodings.guess(text.encode("utf-8", "surrogateescape")).lstrip("; "), shown)
    return Parsed(value, text)


# --- which of these a file is ---

# Keys under which whole files keep their rows: {"version": "1.0", "data": [{…}, …]}
_SCALAR = rb'"(?:[^"\\]|\\.){0,2000}"|-?[0-9][0-9.eE+-]*|true|false|null|\{[^{}\[\]]{0,2000}\}'
_WRAPPED = re.compile(
    rb'\s*\{\s*(?:"[^"\\]{0,200}"\s*:\s*(?:' + _SCALAR + rb")\s*,\s*){0,20}"
    rb'"(data|rows|examples|items|records|samples|instances|dataset|train)"\s*:\s*\[\s*\{'
)
HEAD = 2**16


def wrapper_key(stream: Stream) -> str | None:
    """The key under which the one object of a file holds all rows, if it is such a file."""
    stream.seek(0)
    head = b""
    with contextlib.suppress(*DAMAGE):  # what is whole of the file is told by its lines
        while len(head) < HEAD and (line := stream.readline(HEAD)):
            head += line
    match = _WRAPPED.match(head.removeprefix(codecs.BOM_UTF8))
    if not match:
        return None
    # JSONL may have rows with such a key: then its first line is whole, and others follow
    stream.seek(0)
    last = b""
    with contextlib.suppress(*DAMAGE):
        while block := stream.readline(2**20):
            last = (last + block)[-HEAD:]
            if block.endswith(b"\n") and last.strip(b" \t\r\n").removeprefix(codecs.BOM_UTF8):
                break
        if last.rstrip().endswith(b"}"):
            while block := stream.read(2**20):
                if block.strip():
                    return None
    return match[1].decode()


def spans_lines(stream: Stream) -> bool:
    """Whether a file begins with a JSON object that is written on several lines."""
    stream.seek(0)
    try:
        window = _Window(stream)
        window.next()
        first = window.line
        value, _ = window.value(LARGEST)
    except DAMAGE:
        return False
    return isinstance(value, dict) and window.line > first
