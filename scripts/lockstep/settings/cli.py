"""The command line that all stages share, and the place where errors become messages."""

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lockstep import paths
from lockstep.errors import (
    DISK_FULL,
    INTERRUPTED,
    TERMINATED,
    USER_ERROR,
    Terminated,
    UserError,
    is_full_disk,
    is_out_of_memory,
    missing_package,
)
from lockstep.processes import distributed
from lockstep.settings import commands, tree, yaml_file
from lockstep.settings.tree import Settings
from lockstep.text import language

INTERRUPTION = "interrupted; run the same command again"


class _Language(argparse.Action):
    """--lang: takes effect at once, so that errors in the words after it are said in that language."""

    def __call__(self, _: object, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        language.use(value)
        setattr(namespace, self.dest, value)


class _Help(argparse.RawDescriptionHelpFormatter):
    """--help in the user's language, which --lang may have set when it is printed; without a translation in English."""

    def start_section(self, heading: str | None) -> None:
        translate = language.phrase if heading == "options" else language.translated  # a word of other meanings
        super().start_section(heading and translate(heading))

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, language.phrase("usage: ") if prefix is None else prefix)

    def _format_text(self, text: str) -> str:
        first, end, rest = text.partition("\n")  # the rest of a docstring names files and commands
        return super()._format_text(language.translated(first) + end + rest)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default, value = (action.help or "").partition(" [")
        return language.translated(text) + default + value

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Text wrapped to columns: of Chinese each character takes two, and it has no spaces to break at."""
        if language.current() != language.CHINESE:
            return super()._split_lines(text, width)
        lines, columns = [""], 0
        for char in " ".join(text.split()):
            columns += 2 if unicodedata.east_asian_width(char) in "WF" else 1
            if columns > width and (char == " " or not char.isascii() or not lines[-1][-1:].isascii()):
                lines, columns = [*lines, ""], 2
            lines[-1] += char
        return [line.strip() for line in lines]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = [word for word in message.split() if word.startswith("--")]
        hint = yaml_file.suggest(unknown[0].lstrip("-").split("=")[0]) if unknown else ""
        raise UserError(f"{message}{hint}; --help lists the options")


def parser(description: str, *sections: str) -> argparse.ArgumentParser:
    """A parser with --config and one flag per setting.

    Args:
        description: the script's docstring.
        sections: those whose settings --help shows; the settings of all sections are accepted.
    """
    arguments = plain_parser(description)
    arguments.add_argument("--config", metavar="FILE", type=Path, help="YAML file with what differs from the defaults")
    group = arguments.add_argument_group("settings (the same names as in the YAML file)")
    for name, field in tree.leaves():
        shown = name.split(".")[0] in {"run", *sections}
        value = field.get_default(call_default_factory=True)
        default = "" if value in (None, (), {}) else f" [{_spell(value)}]"
        text = f"{field.description}{default}".replace("%", "%%") if shown else argparse.SUPPRESS
        group.add_argument(f"--{name}", metavar=tree.type_name(field), default=argparse.SUPPRESS, help=text)
    return arguments


def plain_parser(description: str) -> argparse.ArgumentParser:
    """A parser without settings, for a program that needs no run."""
    arguments = _Parser(description=description, formatter_class=_Help, allow_abbrev=False)
    language_option(arguments)
    return arguments


def language_option(arguments: argparse.ArgumentParser) -> None:
    """--lang, which every script has."""
    arguments.add_argument(
        "--lang",
        choices=language.LANGUAGES,
        action=_Language,
        help="language of messages, report and preview; default: that of the system's locale",
    )


def say(message: str = "", *, to_stderr: bool = False, flush: bool = False) -> None:
    """Print a message for the user, in the user's language; a message without a translation is printed in English."""
    print(language.translated(message), file=sys.stderr if to_stderr else sys.stdout, flush=flush)


def _spell(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings that parsed options ask for. File paths on the command line are relative to where the user is."""
    known = dict(tree.leaves())
    overrides = {key: text for key, text in vars(options).items() if key in known}
    settings = yaml_file.load(options.config, overrides, Path.cwd())
    commands.remember(options.config, overrides, settings)
    return settings


def words_for(settings: Settings, section: str, without: tuple[str, ...] = ()) -> list[str]:
    """The settings of a section that differ from their defaults, as words of a command line."""
    given, defaults = settings.sections(section)[section], Settings().sections(section)[section]
    words: list[str] = []
    for key, value in given.items():
        if key not in without and value != defaults[key]:
            words += [f"--{section}.{key}", commands.as_word(value)]
    return words


def stage_options(arguments: argparse.ArgumentParser) -> None:
    """--force and --check, which every stage that writes a folder has."""
    arguments.add_argument("--force", action="store_true", help="make the output again, replacing what is there")
    arguments.add_argument(
        "--check",
        action="store_true",
        help="do nothing; the exit code is 0 if the output is there, 3 if not, and 2 if a path is wrong",
    )


def run(work: Callable[[], int | None]) -> NoReturn:
    """Run a script's main, and turn an error into one line and an exit code.

    0 done · 2 something that the user can put right · 75 SIGTERM, unfinished · 130 Ctrl-C.
    LOCKSTEP_DEBUG=1 shows tracebacks.
    """
    commands.start()
    _stand_in_for_closed_streams()
    _hold_packages()
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):  # not where it is ignored
        signal.signal(signal.SIGINT, _on_ctrl_c)
    # a terminal or locale that is not UTF-8 shows \u4f60 for what it cannot; work must not end over that
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    # By default torch's threads spin for milliseconds while they wait for each other. With more programs than cores
    # that takes most of the time; otherwise sleeping earlier costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        code = work() or 0
        if code == 0 and distributed.FIRST and (line := commands.following()):
            say(line)
        sys.stdout.flush()
    except BrokenPipeError:  # `… | head` closed the pipe: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Terminated as error:
        code = _report(str(error), TERMINATED)
    except UserError as error:
        code = _report(str(error), USER_ERROR)
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C, while libraries tidy up, ends at once
        code = _report(str(error) or INTERRUPTION, INTERRUPTED)
    except BaseException as error:
        explanation = _explained(error)
        if explanation is None:
            raise
        code = _report(explanation, USER_ERROR)
    sys.exit(code)


def _on_ctrl_c(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but where a module is being imported, end the program at once.

    Packages that are written in Rust or C++ break down over an exception in the middle of their import. Outputs do not
    mind: a stage that is killed has published nothing.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(sys.stderr.fileno(), f"error: {INTERRUPTION}\n".encode())
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _explained(error: BaseException) -> str | None:
    """What an error of the system or of a library means, or None where that is not known."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}{_where(error)}; nothing was published"
    if is_full_disk(error):
        return f"{DISK_FULL}; nothing was published"
    if is_out_of_memory(error):
        return f"out of memory ({error}): stop other programs and run again; nothing was published"
    if missing := missing_package(error):
        return missing
    if type(error).__name__ == "PanicException":  # of a library of Rust's, and not an Exception
        return f"a library broke down ({error}); nothing was published"
    return None


def _stand_in_for_closed_streams() -> None:
    """Open standard streams that the caller closed to nowhere: else the next opened file would take their number."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)  # also for programs started from here
    os.close(number)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _hold_packages() -> None:
    """Hold a lock, so that `make setup` does not clear the environment that this stage runs in."""
    if sys.prefix != sys.base_prefix:
        with contextlib.suppress(OSError):  # it is being rebuilt, or its file system has no locks
            fcntl.flock(os.open(sys.prefix, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)


def _where(error: OSError) -> str:
    name = error.filename
    return f": {paths.label(Path(os.fsdecode(name)))}" if name and not isinstance(name, int) else ""


def _report(message: str, code: int) -> int:
    if os.environ.get("LOCKSTEP_DEBUG") == "1":
        raise  # noqa: PLE0704 - called from an except block, to show its traceback
    # with several processes, each may have an error of its own
    which = "" if distributed.FIRST else f"process {distributed.RANK}: "
    print(which + language.translated(f"error: {' '.join(message.split())}"), file=sys.stderr)
    return code
