"""Runs a server in the foreground: opens it once it is proved, closes it while it hangs, leaves no process behind.

`python -m lockstep.serving.supervisor start|stop|status SETTINGS…`, as serve_vllm.sh calls it.
"""

import argparse
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lockstep import paths
from lockstep.artifacts import filenames, lineage
from lockstep.endpoint import address, curl_line, server_note
from lockstep.endpoint.server_note import State
from lockstep.errors import TERMINATED, Terminated, UserError
from lockstep.merging import disk_check
from lockstep.processes import child_processes
from lockstep.serving import gate, gate_report, launch, launch_plan, process_tree, server_control, watch
from lockstep.serving.gate import Claim
from lockstep.serving.gate_findings import Tell
from lockstep.serving.launch_plan import LaunchPlan
from lockstep.serving.probe import Server, Unanswered
from lockstep.serving.start_progress import Relayed, StartProgress
from lockstep.settings import cli, commands
from lockstep.settings.tree import Settings
from lockstep.text import language

STOPPED = "the server was stopped before it had opened"
UNOPENED = 5.0  # seconds to end in for vLLM that nobody was let in to; while it loads, it does not listen to signals
OPEN = "open"  # the file by which the middleware knows that others are let in

Prove = Callable[[Server, Claim, Tell], dict[str, Any]]


class _Signalled(BaseException):
    """A signal asked to stop; carries its number. No Exception, which a library's import might swallow."""


def start(plan: LaunchPlan, prove: Prove = gate.prove) -> int:
    """Run the server; returns the exit code of this program.

    Args:
        prove: the gate: makes the report that decides whether the server opens.

    Raises:
        UserError: already served, not healthy in time, not proved, or the server ended by itself.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    with server_control.alone(plan.folder):
        return _run(plan, prove)


def _run(plan: LaunchPlan, prove: Prove) -> int:
    """`start`, for who holds the folder."""
    with _signals() as numbers:
        child_processes.become_subreaper()
        opened = plan.folder / OPEN
        opened.unlink(missing_ok=True)  # of a supervisor that was killed
        server = Server(plan.url, secrets.token_urlsafe(32))
        states: list[State] = []
        try:
            _serve(plan, server, opened, prove, states)
        except _Signalled as signalled:
            cli.say("stopping …")
            if signalled.args[0] != signal.SIGTERM:
                return 128 + int(signalled.args[0])
            if "open" not in states:  # who waits for it must not take it for served
                raise Terminated(STOPPED) from None
            return 0
        finally:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
            grace = plan.timing.grace
            _shut_down(plan, server, opened, grace if "open" in states else min(grace, UNOPENED))


def _serve(plan: LaunchPlan, server: Server, opened: Path, prove: Prove, states: list[State]) -> NoReturn:
    """From the first note to the server's end, which is an error or a signal.

    Args:
        states: grows by each state that the server enters.
    """

    def enter(state: State) -> None:
        states.append(state)
        _note(plan, state)

    enter("starting")
    foreseen = _foresee(plan)
    log = plan.folder / filenames.SERVER_LOG
    progress = StartProgress(lambda text: _note(plan, states[-1], text), partial(print, end="", flush=True))
    if plan.route:
        cli.say(plan.route)
    print(f"$ {launch.command_line(plan)}")
    cli.say(f"starting vLLM, which takes a minute; its log is {paths.label(log)}", flush=True)
    with launch.launched(plan, server.secret, opened, log, lambda: progress.text) as launched:
        loading = partial(progress.tell, "vLLM loads the model")
        launch.wait_until_healthy(server, launched, log, plan.timing.startup, loading)
    process = launched.process
    progress.clear()
    enter("checking")
    _prove(plan, server, prove, foreseen, progress)
    opened.touch()
    _show_example(plan)
    enter("open")  # last: who waits for this note, as `detach` does, finds all the rest in place
    watch.until_it_ends(process, server, plan, opened, partial(_note, plan))
    raise UserError(f"the server ended by itself (exit code {process.wait()}): {launch.last_error(log)}")


def _shut_down(plan: LaunchPlan, server: Server, opened: Path, grace: float) -> None:
    """Let nothing new in, let what is in flight end within `grace` seconds, and leave no process behind."""
    with contextlib.suppress(OSError):
        opened.unlink(missing_ok=True)
    left = 0.0
    try:
        left = _let_finish(server, grace)
    finally:
        process_tree.end_all(left)
        with contextlib.suppress(OSError):
            (plan.folder / filenames.SERVER_NOTE).unlink(missing_ok=True)


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Signals that ask to stop raise `_Signalled`; yields them."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means that a hang-up is no reason
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, _raise)
    yield numbers


def _raise(number: int, _: FrameType | None) -> None:
    raise _Signalled(number)


def _note(plan: LaunchPlan, state: State, progress: str = "") -> None:
    server_note.write(
        plan.folder, state, url=plan.url, model=plan.model, mode=plan.claim.mode, served=plan.served,
        grace=plan.timing.grace, progress=progress,
    )  # fmt: skip


def _foresee(plan: LaunchPlan) -> dict[str, Any]:
    """Refuse, before a slow start, what the gate would refuse after it.

    Returns:
        fields of the gate's report.
    """
    foreseen = gate.foresee(plan.claim)
    on_disk: dict[str, Any] = {}
    if foreseen is None:
        try:
            on_disk = _check_disk(plan.remade)
        except UserError as error:
            foreseen = {"reasons": [str(error)]}
    if foreseen:
        about = {"mode": plan.claim.mode, "model": plan.model, "served": plan.served}
        label = gate_report.write(plan.folder, {**about, **foreseen, "passed": False})
        raise UserError(f"the gate stays shut: {foreseen['reasons'][0]}; see {label}")
    return {"on_disk": on_disk}


def _check_disk(remade: dict[Path, Settings]) -> dict[str, Any]:
    """Compare what stage 03 made with what base and adapter give; label → what was compared. Raises UserError."""
    compared = {}
    for folder, settings in remade.items():
        label = paths.label(folder)
        if not disk_check.is_remembered(settings, folder):
            cli.say(f"comparing every tensor and file of {label} with what base and adapter give …", flush=True)
        compared[label] = disk_check.require(settings, folder)
    return compared


def _prove(plan: LaunchPlan, server: Server, prove: Prove, foreseen: dict[str, Any], progress: StartProgress) -> None:
    """Let the gate ask, keep its report, and refuse to go on where it does not pass.

    Args:
        foreseen: fields of the report that are known already.
    """
    cli.say("checking that this is the model that was trained …", flush=True)
    started = time.monotonic()
    try:
        report = prove(server, plan.claim, progress.tell)
    except Unanswered as error:
        log = paths.label(plan.folder / filenames.SERVER_LOG)
        raise UserError(f"the gate stays shut, the server fails: {error}; see {log}") from error
    finally:
        progress.clear()
    report |= {**foreseen, "served": plan.served, "seconds": round(time.monotonic() - started, 1)}
    label = gate_report.write(plan.folder, report)
    for warning in report["warnings"]:
        cli.say(f"warning: {warning}", to_stderr=True)
    if not report["passed"]:
        raise UserError(f"the gate stays shut: {report['reasons'][0]}; see {label}")
    cli.say(gate_report.outcome(plan.folder))


def _show_example(plan: LaunchPlan) -> None:
    curl = curl_line.line(plan.url, plan.example)
    cli.say(
        f"serving {plan.model} at {plan.url}; Ctrl-C or `{commands.make('stop')}` ends it. Try\n\n  {curl}\n",
        flush=True,
    )
    served = () if plan.claim.mode == "base" else ("--evaluate.tuned_url", plan.url)
    goals = (commands.make("client", "--chat"), commands.make("chat"), commands.make("evaluate", *served))
    cli.say(f"next, in another terminal: {', '.join(f'`{goal}`' for goal in goals)}", flush=True)


def _let_finish(server: Server, grace: float) -> float:
    """Wait for the answers to what was let in: vLLM ends without answering what has not reached its engine.

    Returns:
        seconds that are left for the rest of the shutdown.
    """
    deadline = time.monotonic() + grace
    with contextlib.suppress(Unanswered):  # it is gone already, or hangs
        while server.in_flight() and time.monotonic() < deadline:
            time.sleep(0.1)
    return max(deadline - time.monotonic(), min(grace, 5.0))


def detach(words: list[str], folder: Path) -> int:
    """Start a supervisor in a session of its own; returns 0 once it serves, or its exit code once it failed.

    What it prints until then is shown.

    Args:
        words: the settings as words of a command line.
        folder: from which it will serve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with server_control.alone(folder):  # or the log is not ours to empty
        pass
    log = folder / "supervisor.log"
    with log.open("wb") as stream:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "lockstep.serving.supervisor", "start", *words],
            stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        with log.open(encoding="utf-8", errors="replace") as output:
            relayed = Relayed(partial(_progress_of, folder), partial(print, end="", flush=True))
            note = server_note.wait_until_open(folder, supervisor, meanwhile=lambda: relayed.add(output.read()))
            relayed.end(output.read())
    except KeyboardInterrupt:  # nobody waits for it any more
        supervisor.terminate()
        raise
    if note is None:
        if (code := supervisor.wait()) < 0:  # a signal ended it, and it could not say so
            raise Terminated(STOPPED)
        return code
    cli.say(
        f"it runs on in the background, as process {supervisor.pid}: {commands.make('status')}, {commands.make('stop')}"
    )
    return 0


def _progress_of(folder: Path) -> str:
    note = server_note.read(folder)
    return note.progress if note else ""


def main() -> int:
    parser = cli.parser("Serve a run, or look after its server", "serve")
    parser.add_argument("action", choices=["start", "stop", "status", "check"], help=argparse.SUPPRESS)
    parser.add_argument("--detach", action="store_true", help="go on in the background once it serves")
    options = parser.parse_args()
    settings = cli.settings_from(options)
    folders = [settings.run_dir / name for name in address.FOLDERS]
    others = server_control.others(settings.run_dir)
    nobody = f"no server of {paths.label(settings.run_dir)} is running" + (f"; {others}" if others else "")
    if options.action == "check":  # before anything is merged for it
        launch_plan.check_place(settings)
        return 0
    if options.action == "stop":
        cli.say("\n".join(filter(None, map(server_control.stop, folders))) or nobody)
        return 0
    if options.action == "status":
        if not others:
            nobody += f": `{commands.make('serve')}` starts one"
        servers = [(code, text) for code, text in map(server_control.status, folders) if text]
        notes = [f"note: {line}" for line in lineage.notes(settings)] if servers else []
        cli.say("\n".join([*(text for _, text in servers), *notes]) or nobody)
        return max((code for code, _ in servers), default=server_control.NOT_RUNNING)
    if options.detach:
        return detach([word for word in sys.argv[2:] if word != "--detach"], address.serve_dir(settings))
    return _plan_and_start(settings)


def _plan_and_start(settings: Settings) -> int:
    """Look at what is to be served, which may take minutes, and serve it; `make stop` ends that, too."""
    folder = address.serve_dir(settings)
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / filenames.SERVER_NOTE

    def end_at_once(number: int, _: FrameType | None) -> NoReturn:
        note.unlink(missing_ok=True)
        os.write(sys.stderr.fileno(), f"{language.translated(f'error: {STOPPED}')}\n".encode())
        os._exit(TERMINATED)  # packages that are being imported break down over an exception

    with server_control.alone(folder):
        server_note.write(
            folder, "starting", url=address.url(settings), model=address.model_name(settings),
            mode=settings.serve.mode, served={}, grace=0.0, progress="looking at what is to be served",
        )  # fmt: skip
        before = signal.signal(signal.SIGTERM, end_at_once)
        cli.say("looking at what is to be served …", flush=True)
        try:
            if leftovers := server_control.end_leftovers(folder):  # before the look at what memory there is
                cli.say(leftovers)
            plan = launch_plan.plan(settings)
            if newer := lineage.newer_rows(settings.run_dir):
                cli.say(f"note: {newer}", flush=True)
        except BaseException:
            note.unlink(missing_ok=True)
            raise
        signal.signal(signal.SIGTERM, before)
        return _run(plan, gate.prove)


if __name__ == "__main__":
    cli.run(main)
