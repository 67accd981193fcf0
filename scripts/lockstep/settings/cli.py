"""The command line that all stages share, and the one place where an error becomes a message."""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

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
)
from lockstep.processes import distributed
from lockstep.settings import schema, tree, yaml_file
from lockstep.settings.tree import Settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = [word for word in message.split() if word.startswith("--")]
        hint = yaml_file.suggest(unknown[0].lstrip("-").split("=")[0]) if unknown else ""
        raise UserError(f"{message}{hint}; --help lists the options")


def parser(description: str, *sections: str) -> argparse.ArgumentParser:
    """A parser with --config and one flag per setting.

    Args:
        description: the script's docstring.
        sections: the settings to show in --help; all are accepted.
    """
    made = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.add_argument("--config", metavar="FILE", type=Path, help="YAML with what differs from the defaults")
    group = made.add_argument_group("settings (the same names as in the YAML file)")
    for name, field in tree.leaves():
        shown = name.split(".")[0] in {"run", *sections}
        value = field.get_default(call_default_factory=True)
        default = "" if value in (None, (), {}) else f" [{_spell(value)}]"
        text = f"{field.description}{default}".replace("%", "%%") if shown else argparse.SUPPRESS
        group.add_argument(f"--{name}", metavar=tree.type_name(field), default=argparse.SUPPRESS, help=text)
    return made


def _spell(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings that parsed options ask for. File paths typed by hand start where the user is."""
    known = dict(tree.leaves())
    overrides = {key: text for key, text in vars(options).items() if key in known}
    settings = yaml_file.load(options.config, overrides)
    for key, text in overrides.items():
        is_path = key in schema.FILE_KEYS or (key == "data.template" and text.endswith(".jinja"))
        in_data_set = settings.data.source != "files" and key.startswith("data.") and key != "data.template"
        if is_path and not in_data_set and text not in ("", *tree.NULLS):
            names = [text] if key == "data.template" or Path(text).exists() else text.split(",")
            overrides[key] = ",".join(str(Path(name).absolute()) for name in names if name)
    return yaml_file.load(options.config, overrides)


def words_for(settings: Settings, section: str, without: tuple[str, ...] = ()) -> list[str]:
    """What differs from the defaults in a section, as words of a command line."""
    tree, plain = settings.sections(section)[section], Settings().sections(section)[section]
    words: list[str] = []
    for key, value in tree.items():
        if key not in without and value != plain[key]:
            text = (
                json.dumps(value)
                if isinstance(value, dict | bool)
                else ",".join(value)
                if isinstance(value, list)
                else str(value)
            )
            words += [f"--{section}.{key}", "null" if value is None else text]
    return words


def stage_options(made: argparse.ArgumentParser) -> None:
    """--force and --check, which every stage that writes a folder has."""
    made.add_argument("--force", action="store_true", help="make the output again, replacing what is there")
    made.add_argument(
        "--check",
        action="store_true",
        help="only say by the exit code whether the output is there (0) or not (3); 2: a path is wrong",
    )


def run(work: Callable[[], int | None]) -> NoReturn:
    """Run a script's main and turn what went wrong into one line and an exit code.

    0 done · 2 something that the user can put right · 75 SIGTERM, unfinished · 130 Ctrl-C. LOCKSTEP_DEBUG=1 shows tracebacks.
    """
    _stand_in_for_closed_streams()
    _hold_packages()
    # a terminal or locale that is not UTF-8 shows \u4f60 for what it cannot; work must not end over that
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    # By default torch's threads spin for milliseconds where they wait for each other. With one program more than
    # cores that takes most of the time, several times over; with none, sleeping earlier costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a missing optional kernel is no news
    try:
        code = work() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # `… | head` closed the pipe: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        code = _report("interrupted; run the same command again to go on", INTERRUPTED)
    except Terminated as error:
        code = _report(str(error), TERMINATED)
    except UserError as error:
        code = _report(str(error), USER_ERROR)
    except OSError as error:
        code = _report(f"{error.strerror or error}{_where(error)}; nothing was published", USER_ERROR)
    except Exception as error:
        code = _report(_explained(error), USER_ERROR)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library of Rust's, and no Exception
            raise
        code = _report(f"a library broke down ({error}); nothing was published", USER_ERROR)
    sys.exit(code)


def _explained(error: Exception) -> str:
    """What an error of a library means. Raises it where that is not known."""
    if is_full_disk(error):
        return f"{DISK_FULL}; nothing was published"
    if is_out_of_memory(error):
        return f"out of memory ({error}): stop other programs and run again; nothing was published"
    raise error


def _stand_in_for_closed_streams() -> None:
    """Standard streams that the caller closed lead nowhere: else the next file opened would take such a number."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)  # for programs started from here, too
    os.close(number)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _hold_packages() -> None:
    """As long as a stage runs, `make setup` must not clear the environment that it runs in."""
    if sys.prefix != sys.base_prefix:
        with contextlib.suppress(OSError):  # it is being made anew, or its disk has no locks
            fcntl.flock(os.open(sys.prefix, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)


def _where(error: OSError) -> str:
    name = error.filename
    return f": {paths.label(Path(os.fsdecode(name)))}" if name and not isinstance(name, int) else ""


def _report(message: str, code: int) -> int:
    if os.environ.get("LOCKSTEP_DEBUG") == "1":
        raise  # noqa: PLE0704 - called from an except block, to show its traceback
    of_one = (
        "" if distributed.FIRST else f"process {distributed.RANK}: "
    )  # of several processes each may have an error of its own
    print(f"{of_one}error: {' '.join(message.split())}", file=sys.stderr)
    return code
