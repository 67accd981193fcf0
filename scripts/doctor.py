"""Look at this machine, its packages and a run, and say what is wrong, what that will do, and what mends it.

Reads   the machine, the environment that this Python is of, the run's config and data, outputs/ and models/
Writes  nothing, but FILE with --json: {ok, findings: [{code, what, next, stops}], facts}
Run     make doctor
        python scripts/doctor.py --config configs/mine.yaml --json doctor.json
        python scripts/doctor.py --check train.py serve.sh adapter/ rows.jsonl

--check looks at your own scripts, notebooks, commands, adapters and rows instead, and names which of ten common faults
they have, with their lines. Nothing of them is run. Files that belong together are best checked together.

Exit code: 0 nothing stops a stage · 1 something does, or a checked file has a fault · 2 the command line is wrong.
It works with a Python that lacks the packages, as far as that goes.
"""

import sys

OLDEST = (3, 11)
if sys.version_info < OLDEST:
    import json

    WHAT = "Lockstep runs on Python 3.11 and 3.12, and {} is {}.{}".format(sys.executable, *sys.version_info[:2])
    NEXT = "run `make setup PYTHON=python3.11`, and start the scripts with .venv/bin/python"
    if "--json" in sys.argv[:-1]:
        FINDING = {"code": "python_version", "what": WHAT, "next": NEXT, "stops": True}
        with open(sys.argv[sys.argv.index("--json") + 1], "w") as stream:  # noqa: PTH123
            json.dump({"ok": False, "findings": [FINDING], "facts": {}}, stream)
    print("{}: {}".format(WHAT, NEXT))  # noqa: UP032
    sys.exit(1)

import lockstep  # noqa: E402, F401 - looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse  # noqa: E402
from collections.abc import Callable  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any, NoReturn  # noqa: E402

from lockstep.artifacts import atomic  # noqa: E402
from lockstep.doctor import (  # noqa: E402
    checking,
    environment,
    findings,
    kernels,
    leftovers,
    limits,
    machine,
    network,
)
from lockstep.doctor.findings import Fact, Finding, Look  # noqa: E402
from lockstep.errors import USER_ERROR, UserError  # noqa: E402
from lockstep.text import language  # noqa: E402

if TYPE_CHECKING:
    from lockstep.settings.tree import Settings

SICK = 1  # exit code
BROKEN = (ImportError, SystemError)  # what imports raise in half an environment; pydantic's is the second
HOST, PORT = "127.0.0.1", 8000  # where the settings cannot be read


def main() -> int:
    options = parse_arguments()
    if options.check:
        looks = [Look((), tuple(checking.check([Path(name) for name in options.check])))]
    else:
        looks = look_at_everything(options)
    report = findings.report(looks)
    if options.json:
        write(Path(options.json), report)
    show(looks, options.check)
    return 0 if report["ok"] else SICK


def parse_arguments() -> argparse.Namespace:
    """The options; with all settings where this Python has the packages that read them."""
    try:
        from lockstep.settings import cli
    except BROKEN:
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        for name in ("--config", "--lang"):
            parser.add_argument(name, help="not read: this Python lacks packages")
        parser.set_defaults(has_settings=False)
    else:
        parser = cli.parser(__doc__ or "", "serve")
        parser.set_defaults(has_settings=True)
    parser.add_argument("--json", metavar="FILE", help="write the findings there, too")
    parser.add_argument("--check", metavar="FILE", nargs="+", help="look at these files and folders instead")
    if parser.get_default("has_settings"):
        return parser.parse_args()
    options, _ = parser.parse_known_args()  # settings among the rest cannot be told from mistakes
    return options


def look_at_everything(options: argparse.Namespace) -> list[Look]:
    """All looks at the machine and the run. What takes long goes on side by side."""
    settings, config = read_settings(options)
    cuda, gpu = machine.gpus(machine.cuda_of_lock())
    packages = environment.packages(cuda)
    looks = [environment.python(), environment.venv(), packages]
    lacks_torch = any(finding.code == "package_missing" and "torch" in finding.what for finding in packages.findings)
    trial = None if lacks_torch or not installed("torch") else kernels.Trial()
    with ThreadPoolExecutor(2) as pool:
        needs = run_part(settings, lambda own: needs_of(own), [])
        asked = pool.submit(network.look, needs)
        looks += [machine.cores(), machine.memory(needed=run_part(settings, lambda own: memory_of(own, cuda), 0)), gpu]
        looks += [machine.disk(needed=run_part(settings, disk_of, machine.LEAST_DISK)), limits.shared_memory()]
        looks += [limits.encoding(), limits.files(), port_of(settings), leftovers.look()]
        looks += [config, run_part(settings, run_of, Look())]
        looks.append(asked.result())
    return [*looks, trial.result()] if trial else looks


def installed(package: str) -> bool:
    """Whether a package is there at all."""
    import importlib.metadata

    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def read_settings(options: argparse.Namespace) -> "tuple[Settings | None, Look]":
    """The settings, or what is wrong with them; none where nobody names a run, or this Python cannot read them."""
    if not options.has_settings:
        return None, Look()
    from lockstep.settings import cli

    try:
        settings = cli.settings_from(options)
    except UserError as error:
        cure = "mend the command line or the config: docs/settings.md has all names"
        return None, Look((), (Finding("config_wrong", str(error), cure),))
    if not options.config and not settings.explicit:
        return None, Look((Fact("run", "none is named: --config FILE looks at one"),))
    return settings, Look()


def run_part(settings: "Settings | None", look: "Callable[[Settings], Any]", otherwise: Any) -> Any:
    """What a look that needs settings and packages gives; something else where either is not there."""
    if settings is None:
        return otherwise
    try:
        return look(settings)
    except BROKEN:  # the look at the packages tells
        return otherwise


def needs_of(settings: "Settings") -> list[network.Need]:
    from lockstep.doctor import run_state

    return run_state.needs(settings)


def memory_of(settings: "Settings", cuda: bool) -> int:
    from lockstep.doctor import run_state

    return run_state.memory_needed(settings, cuda)


def disk_of(settings: "Settings") -> int:
    from lockstep.doctor import run_state

    return run_state.disk_needed(settings)


def run_of(settings: "Settings") -> Look:
    from lockstep.doctor import run_state

    return run_state.look(settings)


def port_of(settings: "Settings | None") -> Look:
    """The look at the server's port."""
    if settings is None:
        return limits.port(HOST, PORT)

    def ours(own: "Settings") -> str:
        from lockstep.doctor import run_state

        return run_state.server_at(own)

    return limits.port(settings.serve.host, settings.serve.port, run_part(settings, ours, ""))


def write(file: Path, report: dict[str, Any]) -> None:
    """Write the report. Raises UserError where that is impossible."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(file, report)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


def show(looks: list[Look], checked: list[str] | None) -> None:
    """Print the table of facts, and each finding as a line; what stops a stage first."""
    facts = [fact for look in looks for fact in look.facts]
    width = max((len(fact.name) for fact in facts), default=0)
    for fact in facts:
        say(f"{fact.name:<{width}}  {fact.value}")
    every = [finding for look in looks for finding in look.findings]
    if facts and every:
        print()
    for finding in sorted(every, key=lambda finding: not finding.stops):
        print(in_a_line(finding))
    if not every:
        say("none of the ten faults is in these files" if checked else "all is well: nothing stands in a stage's way")


def in_a_line(finding: Finding) -> str:
    """A finding in the reader's language: what it is and what mends it are looked up apart."""
    if language.current() == language.ENGLISH:
        return f"{'error' if finding.stops else 'note'}: [{finding.code}] {finding.text}"
    what, cure = (" ".join(language.translated(part).split()) for part in (finding.what, finding.next))
    place = f"{finding.place}：" if finding.file else ""
    return f"{'错误' if finding.stops else '提示'}：[{finding.code}] {place}{what}；{cure}"


def say(message: str) -> None:
    print(language.translated(message))


def run() -> NoReturn:
    """`main`, by the rules of all scripts where their packages are there."""
    try:
        from lockstep.settings import cli
    except BROKEN:
        try:
            sys.exit(main())
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(USER_ERROR)
    cli.run(main)


if __name__ == "__main__":
    run()
