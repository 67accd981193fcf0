"""What somebody's scripts and commands say together: a fault of one of them often shows only beside another."""

import ast
import json
import re
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lockstep.doctor.findings import SEED_FAULT, Finding
from lockstep.doctor.script_text import Unit
from lockstep.doctor.script_tree import (
    Script,
    dotted,
    is_true,
    keyword,
    last_name,
    names_in,
    parse,
)

TRAINERS = ("Trainer", "SFTTrainer", "Seq2SeqTrainer")
VLLM_SERVERS = re.compile(r"vllm\.entrypoints\.openai\.api_server|vllm/vllm-openai")
OF_FOUR_BITS = re.compile(r"(^|[^a-z])qlora|4[-_]?bit|nf4|bnb", re.IGNORECASE)
HALF = ("float16", "half", "fp16")
LONGEST_LINE = 20_000  # characters that are read as a shell does
END = re.compile(r"[;&|]+|\n")


@dataclass(frozen=True)
class Command:
    """A line of a shell.

    Attributes:
        line: where it begins.
        words: as the shell reads them.
    """

    unit: Unit
    line: int
    words: tuple[str, ...]

    @property
    def place(self) -> str:
        """What to call its line."""
        return self.unit.place(self.line)

    @property
    def starts_vllm(self) -> bool:
        """Whether it starts vLLM's OpenAI server."""
        serves = any(pair == ("vllm", "serve") for pair in zip(self.words, self.words[1:], strict=False))
        return serves or any(VLLM_SERVERS.search(word) for word in self.words)

    def values(self, option: str) -> list[str]:
        """The words after an option, up to the next one; empty where it is not there."""
        values: list[str] = []
        reading = False
        for word in self.words:
            name, _, value = word.partition("=")
            if word.startswith("-"):
                reading = name.replace("_", "-") == option
                values += [value] if reading and value else []
            elif reading:
                values.append(word)
        return values

    def has(self, option: str) -> bool:
        """Whether an option stands in it."""
        return any(word.split("=")[0].replace("_", "-") == option for word in self.words)


@dataclass
class Project:
    """Scripts and commands that are looked at together."""

    scripts: list[Script] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)

    @classmethod
    def of(cls, units: list[Unit]) -> "Project":
        """What stands in the units."""
        scripts = [parse(unit) for unit in units if unit.kind == "python"]
        commands = [command for unit in units if unit.kind == "shell" for command in commands_of(unit)]
        for script in scripts:
            commands += _started_by(script)
        return cls(scripts, commands)

    @cached_property
    def texts(self) -> list[str]:
        """All strings and words, without what explains them."""
        texts = [str(node.value) for script in self.scripts for node in script.strings]
        return texts + [word for command in self.commands for word in command.words]

    def mentions(self, pattern: str) -> bool:
        """Whether a string, a word or a name fits a pattern."""
        return any(re.search(pattern, text, re.IGNORECASE) for text in self.texts)

    def all_calls(self, *names: str) -> list[tuple[Script, ast.Call]]:
        """All calls of functions whose last name is one of these."""
        return [(script, call) for script in self.scripts for call in script.calls if last_name(call) in names]

    @cached_property
    def pads_with_end(self) -> bool:
        """Whether the token that ends a text also fills up rows."""
        for script in self.scripts:
            for node in script.nodes:
                targets = node.targets if isinstance(node, ast.Assign) else []
                if any(last_name(t) in ("pad_token", "pad_token_id") for t in targets) and _is_end(node.value):  # type: ignore[attr-defined]
                    return True
                if isinstance(node, ast.keyword) and node.arg == "pad_token" and _is_end(node.value):
                    return True
        return False

    @cached_property
    def knows_its_padding(self) -> bool:
        """Whether the scripts load the tokenizer, or give it a token of its own to fill up with."""
        for script in self.scripts:
            if script.tokenizers or any(last_name(call) == "add_special_tokens" for call in script.calls):
                return True
            for node in script.nodes:
                if isinstance(node, ast.Assign) and any(last_name(t) == "pad_token" for t in node.targets):
                    return True
        return False

    @cached_property
    def of_four_bits(self) -> bool:
        """Whether the scripts train on weights in four bits, or their names say so."""
        loads = any(is_true(keyword(call, "load_in_4bit")) for script in self.scripts for call in script.calls)
        return loads or any(OF_FOUR_BITS.search(text) for text in self.texts if len(text) < 300)

    @cached_property
    def trains_in_bfloat16(self) -> str:
        """Where a script trains in bfloat16: file and line; empty where none does."""
        for script, call in self.all_calls("TrainingArguments", "SFTConfig", "Seq2SeqTrainingArguments"):
            if is_true(keyword(call, "bf16")):
                node = keyword(call, "bf16")
                assert node is not None
                return f"{script.unit.file}:{script.place(node)}"
        return ""


def _is_end(node: ast.expr) -> bool:
    return any(re.fullmatch(r"eos_token(_id)?", name) for name in names_in(node))


def fault(number: int, what: str, cure: str, script: Script, *nodes: ast.AST) -> Finding:
    """A finding of one of the ten faults, at some lines of a script."""
    lines = tuple(dict.fromkeys(script.place(node) for node in sorted(nodes, key=lambda n: getattr(n, "lineno", 0))))
    return Finding(f"{SEED_FAULT}{number}", what, cure, file=script.unit.file, lines=lines)


def fault_of(number: int, what: str, cure: str, command: Command) -> Finding:
    """The same for a command."""
    return Finding(f"{SEED_FAULT}{number}", what, cure, file=command.unit.file, lines=(command.place,))


def commands_of(unit: Unit) -> list[Command]:
    """The commands of a shell's text, with lines that go on joined; lines that no shell reads are left out."""
    commands: list[Command] = _of_containers(unit)
    lines = unit.text.split("\n")
    number = 0
    while number < len(lines):
        start, text = number, lines[number]
        while number + 1 < len(lines) and (text.rstrip().endswith("\\") or _is_open(text)):
            number += 1
            joined = text.rstrip()
            text = (joined[:-1] + " " if joined.endswith("\\") else text + "\n") + lines[number]
        number += 1
        text = re.sub(r"^\s*(?:\$|>|-|RUN|CMD|ENTRYPOINT|ExecStart=|command:)\s+", "", text)
        commands += [Command(unit, start + 1, words) for words in _split(text)]
    return commands


def _of_containers(unit: Unit) -> list[Command]:
    """The arguments that a YAML file of Docker or Kubernetes gives to vLLM's image, which starts the server itself."""
    commands: list[Command] = []
    if not re.search(r"^\s*(?:- )?image:.*vllm", unit.text, re.MULTILINE):
        return commands
    lines = unit.text.split("\n")
    for number, line in enumerate(lines):
        match = re.match(r"(\s*)(?:- )?(?:command|args):\s*(.*)", line)
        if not match:
            continue
        words = re.sub(r"[\[\],]", " ", match[2].strip("|>-")).split()
        for below in lines[number + 1 :]:
            if (
                below.strip()
                and len(below) - len(below.lstrip()) <= len(match[1])
                and not below.lstrip().startswith("- ")
            ):
                break
            words += re.sub(r"^\s*- ", "", below).split()
        commands.append(Command(unit, number + 1, ("vllm", "serve", *(word.strip("\"'") for word in words))))
    return commands


def _is_open(text: str) -> bool:
    """Whether a quote is open at the end, at which a JSON body of curl goes on."""
    if len(text) > LONGEST_LINE or text.lstrip().startswith("#"):
        return False
    try:
        shlex.split(text, comments=True)
    except ValueError as error:
        return "quotation" in str(error) and "curl" in text
    return False


def _split(text: str) -> list[tuple[str, ...]]:
    if len(text) > LONGEST_LINE:
        return [tuple(text.split())]
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words: list[str] = []
    commands: list[tuple[str, ...]] = []
    try:
        for word in lexer:
            if END.fullmatch(word):
                commands.append(tuple(words))
                words = []
            else:
                words.append(word)
    except ValueError:
        commands, words = [], text.split()
    return [shown for command in (*commands, tuple(words)) if (shown := _without_redirections(command))]


def _without_redirections(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a command without `> file`, `2>&1` and the like."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif re.match(r"\d*[<>]", word):
            skip = bool(re.fullmatch(r"\d*[<>]+", word))
        else:
            kept.append(word)
    return tuple(kept)


def _started_by(script: Script) -> list[Command]:
    """Commands that a script starts: lists of strings, and texts, that name vLLM's server."""
    commands = []
    for node in script.nodes:
        words: tuple[str, ...] = ()
        if isinstance(node, ast.List | ast.Tuple):
            words = tuple(str(n.value) if isinstance(n, ast.Constant) else "$" + dotted(n) for n in node.elts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in script.docstrings:
            words = next(iter(_split(node.value)), ()) if "vllm" in node.value and " --" in node.value else ()
        command = Command(script.unit, getattr(node, "lineno", 1), words)
        if words and command.starts_vllm:
            commands.append(command)
    return commands


def body_of(command: Command) -> dict[str, Any]:
    """The JSON that a curl command sends; empty where there is none."""
    for number, word in enumerate(command.words[:-1]):
        if word in ("-d", "--data", "--data-raw", "--data-binary", "--json"):
            try:
                value = json.loads(command.words[number + 1])
            except ValueError:
                return {}
            return value if isinstance(value, dict) else {}
    return {}
