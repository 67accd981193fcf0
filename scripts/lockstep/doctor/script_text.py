"""Somebody's files as text: scripts, notebooks, shell commands, and the code blocks of documents, with their lines."""

import codecs
import io
import json
import re
import textwrap
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lockstep import paths
from lockstep.errors import UserError
from lockstep.text import encodings

LARGEST = 8 * 2**20  # bytes of a script; what is larger was written by no person
PYTHON_SUFFIXES = (".py", ".pyw", ".pyi")
DOCUMENT_SUFFIXES = (".md", ".markdown", ".mdx", ".rst", ".qmd")
SHELL_SUFFIXES = (".sh", ".bash", ".zsh", ".command", ".service", ".yaml", ".yml")
CODE_SUFFIXES = (*PYTHON_SUFFIXES, *DOCUMENT_SUFFIXES, *SHELL_SUFFIXES, ".ipynb", ".txt")
FENCE = re.compile(r"^(?P<indent>\s*)(?P<mark>```+|~~~+)\s*(?P<language>[\w+#.-]*)")
SHELLS = ("bash", "sh", "shell", "zsh", "console", "shell-session", "powershell", "bat", "cmd", "dockerfile", "yaml")
NO_CODE = ("json", "jsonl", "text", "output", "csv", "xml", "html", "css", "mermaid", "diff", "jinja", "toml", "ini")
IS_PYTHON = re.compile(r"^\s*(?:import \w|from \w[\w.]* import |def \w+\(|class \w|@\w)", re.MULTILINE)
SHELL_LINE = re.compile(r"^\s*(?:\w+\s*=\s*)?!")
MAGIC = re.compile(r"^(\s*)((?:\w+\s*=\s*)?[%!?].*|\w[\w.]*\?{1,2}\s*)$")


@dataclass(frozen=True)
class Unit:
    """One program or list of commands in a file.

    Attributes:
        file: its label.
        kind: python or shell.
        text: with as many lines before it as the file has, so that line numbers are the file's.
        places: what to call the lines of a notebook; empty elsewhere.
        is_fragment: whether it is a block of a document, which may leave things out.
    """

    file: str
    kind: Literal["python", "shell"]
    text: str
    places: tuple[str, ...] = ()
    is_fragment: bool = False

    def place(self, line: int) -> str:
        """What to call a line, counted from 1."""
        return self.places[line - 1] if 0 < line <= len(self.places) else str(line)


def read(file: Path) -> str:
    """The text of a script, in whatever encoding it is. Raises UserError."""
    name = paths.label(file)
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{name} has more than {LARGEST // 2**20} MiB: that is no script; rows belong into .jsonl")
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    if b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{name} holds no text: --check reads scripts, notebooks, commands, adapters and rows")
    return data.decode(_encoding(file, data), errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _encoding(file: Path, data: bytes) -> str:
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if file.suffix in PYTHON_SUFFIXES:  # its first lines may name one
            try:
                return tokenize.detect_encoding(io.BytesIO(data).readline)[0]
            except (SyntaxError, LookupError):
                pass
        guessed = encodings.likely(data) or "latin-1"
        return "gb18030" if guessed == "GBK" else guessed
    return "utf-8-sig"


def units(file: Path) -> list[Unit]:
    """The programs and commands in a file. Raises UserError where it holds none, or cannot be read."""
    name, text = paths.label(file), read(file)
    suffix = file.suffix.lower()
    if suffix == ".ipynb":
        return _notebook(name, text)
    if suffix in DOCUMENT_SUFFIXES or (suffix in ("", ".txt") and re.search(FENCE.pattern, text, re.MULTILINE)):
        return _document(name, text)
    if suffix in PYTHON_SUFFIXES or (text.startswith("#!") and "python" in text.split("\n", 1)[0]):
        return [Unit(name, "python", text)]
    if suffix not in SHELL_SUFFIXES and _is_python(text):
        return [Unit(name, "python", text)]
    return [Unit(name, "shell", text)]


def _is_python(text: str) -> bool:
    shell = re.search(r"^(?:\s*(?:curl|vllm|docker) |[\w.-]+:(?: |$)|FROM )", text, re.MULTILINE)  # also make, docker
    return bool(IS_PYTHON.search(text)) and not shell


def _document(name: str, text: str) -> list[Unit]:
    """The code blocks of a document; all of a text without a block is taken for commands."""
    blocks, lines = [], text.split("\n")
    start, mark, language = 0, "", ""
    for number, line in enumerate(lines):
        match = FENCE.match(line)
        if not mark and match:
            start, mark, language = number + 1, match["mark"], match["language"].lower()
        elif mark and line.strip().startswith(mark) and not line.strip().strip(mark[0]):
            if language not in NO_CODE:
                blocks.append((language, start, lines[start:number]))
            mark = ""
    units = []
    for language, start, block in blocks:
        body = textwrap.dedent("\n".join(block))  # in a list, blocks are indented
        is_python = language not in SHELLS and (language.startswith("py") or _is_python(body))
        units.append(Unit(name, "python" if is_python else "shell", "\n" * start + body, is_fragment=True))
    return units or [Unit(name, "shell", text)]


def _notebook(name: str, text: str) -> list[Unit]:
    try:
        cells = json.loads(text)["cells"]
        sources = [(n, _source(cell)) for n, cell in enumerate(cells, 1) if cell.get("cell_type") == "code"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{name} is no notebook: it holds no list of cells") from error
    lines, places, commands, command_places = [], [], [], []
    for cell, source in sources:
        body = source.split("\n")
        of_shell = body[0].startswith(("%%bash", "%%sh"))
        goes_on = False  # a command on several lines
        for number, line in enumerate(body, 1):
            place = f"cell {cell}, line {number}"
            if of_shell or goes_on or SHELL_LINE.match(line):
                instead = (
                    "" if goes_on or (of_shell and number > 1) else line[: len(line) - len(line.lstrip())] + "pass"
                )
                goes_on = line.rstrip().endswith("\\")
                commands.append(SHELL_LINE.sub("", line) if not line.startswith("%%") else "")
                command_places.append(place)
                line = instead
            lines.append(line)
            places.append(place)
    python = Unit(name, "python", "\n".join(lines), tuple(places))
    shell = Unit(name, "shell", "\n".join(commands), tuple(command_places))
    return [python, shell] if commands else [python]


def _source(cell: dict[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def without_magic(text: str) -> str:
    """Python with what only notebooks know replaced by `pass`."""
    return "\n".join(MAGIC.sub(r"\1pass", line) for line in text.split("\n"))
