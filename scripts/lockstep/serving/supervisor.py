"""Runs a server in the foreground: opens it once it is proved, closes it while it hangs, leaves no process behind.

`python -m lockstep.serving.supervisor start|stop|status SETTINGS…`, as serve_vllm.sh calls it.
"""

import argparse
import contextlib
import os
import secrets
import shlex
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
from lockstep.endpoint import address, curl_line, protocol, server_note
from lockstep.endpoint.server_note import State
from lockstep.errors import UserError
from lockstep.merging import disk_check
from lockstep.processes import child_processes
from lockstep.serving import gate, gate_report, launch_plan, probe, process_tree, server_control
from lockstep.serving.gate import Claim
from lockstep.serving.launch_plan import LaunchPlan
from lockstep.serving.probe import Server, Unanswered
from lockstep.settings import cli
from lockstep.settings.tree import Settings

OPEN = "open"  # the file by which the middleware knows that others are let in
PROGRESS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")

Prove = Callable[[Server, Claim], dict[str, Any]]


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
    with server_control.alone(plan.folder), _signals() as numbers:
        child_processes.become_subreaper()
        opened = plan.folder / OPEN
        opened.unlink(missing_ok=True)  # of a supervisor that was killed
        server = Server(plan.url, secrets.token_urlsafe(32))
        try:
            _serve(plan, server, opened, prove)
        except _Signalled as signalled:
            print("stopping …")
            return 0 if signalled.args[0] == signal.SIGTERM else 128 + signalled.args[0]
        finally:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
            _shut_down(plan, server, opened)


def _serve(plan: LaunchPlan, server: Server, opened: Path, prove: Prove) -> NoReturn:
    """From the first note to the server's end, which is an error or a signal."""
    _note(plan, "starting")
    foreseen = _foresee(plan)
    log = plan.folder / filenames.SERVER_LOG
    process = _launch(plan, server.secret, opened, log)
    _wait_until_healthy(process, server, log, plan.timing.startup)
    _note(plan, "checking")
    _prove(plan, server, prove, foreseen)
    opened.touch()
    _show_example(plan)
    _note(plan, "open")  # last: who waits for this note, as `detach` does, finds all the rest in place
    _watch(process, server, plan, opened)
    raise UserError(f"the server ended by itself (exit code {process.wait()}): {_last_error(log)}")


def _shut_down(plan: LaunchPlan, server: Server, opened: Path) -> None:
    """Let nothing new in, let what is in flight end, and leave no process behind."""
    with contextlib.suppress(OSError):
        opened.unlink(missing_ok=True)
    left = 0.0
    try:
        left = _let_finish(server, plan.timing.grace)
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


def _note(plan: LaunchPlan, state: State) -> None:
    server_note.write(
        plan.folder, state, url=plan.url, model=plan.model, mode=plan.claim.mode, served=plan.served,
        grace=plan.timing.grace,
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
            print(f"comparing every tensor and file of {label} with what base and adapter give …", flush=True)
        compared[label] = disk_check.require(settings, folder)
    return compared


def _launch(plan: LaunchPlan, secret: str, opened: Path, log: Path) -> subprocess.Popen[bytes]:
    rules = plan.folder / server_control.RULES
    plan.rules.write(rules)
    environment = os.environ | plan.environment | {
        protocol.RULES: str(rules), protocol.OPEN: str(opened), protocol.SECRET: secret,
    }  # fmt: skip
    environment["SPT_NOENV"] = "1"  # vLLM's processes change their titles, and must keep what `clear` knows them by
    environment.pop("VLLM_API_KEY", None)
    if key := protocol.key():
        environment["VLLM_API_KEY"] = key  # a second lock behind ours
    if plan.route:
        print(plan.route)
    print(f"$ {shlex.join([f'{name}={value}' for name, value in plan.environment.items()] + plan.command)}")
    print(f"starting vLLM, which takes a minute; its log is {paths.label(log)}", flush=True)
    with log.open("wb") as stream:
        return subprocess.Popen(
            plan.command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True, preexec_fn=partial(child_processes.die_with_parent, os.getpid()),
        )  # fmt: skip


def _wait_until_healthy(process: subprocess.Popen[bytes], server: Server, log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"the server did not start: {_last_error(log)}; see {paths.label(log)}")
        with contextlib.suppress(Unanswered):
            server.ask("/health", timeout=5)
            server.in_flight()  # and it is not another one at the same address
            return
        time.sleep(0.5)
    raise UserError(
        f"the server was not healthy within {timeout:.0f} s (--serve.startup_timeout); see {paths.label(log)}"
    )


def _prove(plan: LaunchPlan, server: Server, prove: Prove, foreseen: dict[str, Any]) -> None:
    """Let the gate ask, keep its report, and refuse to go on where it does not pass.

    Args:
        foreseen: fields of the report that are known already.
    """
    print("checking that this is the model that was trained …", flush=True)
    started = time.monotonic()
    try:
        report = prove(server, plan.claim)
    except Unanswered as error:
        log = paths.label(plan.folder / filenames.SERVER_LOG)
        raise UserError(f"the gate stays shut, the server fails: {error}; see {log}") from error
    report |= {**foreseen, "served": plan.served, "seconds": round(time.monotonic() - started, 1)}
    label = gate_report.write(plan.folder, report)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if not report["passed"]:
        raise UserError(f"the gate stays shut: {report['reasons'][0]}; see {label}")
    print(gate_report.outcome(plan.folder))


def _show_example(plan: LaunchPlan) -> None:
    curl = curl_line.line(plan.url, plan.example)
    print(f"serving {plan.model} at {plan.url}; Ctrl-C or `make stop` ends it. Try\n\n  {curl}\n", flush=True)


def _watch(process: subprocess.Popen[bytes], server: Server, plan: LaunchPlan, opened: Path) -> None:
    """Until the server ends: ask for a token now and then, and let nobody in while none comes."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(plan.timing.pause)
            return
        before = _progress(server)
        try:
            probe.canary(server, plan.model, plan.canary, plan.timing.patience)
            alive = True
        except Unanswered:
            now = _progress(server)
            alive = now is not None and now != before  # a full server lets a canary wait, and works all the same
        if alive and not opened.exists():
            opened.touch()
            print("the server answers again: open", flush=True)
            with contextlib.suppress(OSError):  # a full disk: what serves goes on
                _note(plan, "open")
        elif not alive and opened.exists() and process.poll() is None:
            opened.unlink()
            print("the server does not answer: closed until it does", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                _note(plan, "not answering")


def _progress(server: Server) -> str | None:
    """The engine's token counters; None where it does not tell them."""
    try:
        text = str(server.ask("/metrics", timeout=5))
    except Unanswered:
        return None
    return "\n".join(line for line in text.splitlines() if line.startswith(PROGRESS))


def _last_error(log: Path) -> str:
    """The most telling line of vLLM's log: the root error, not what followed from it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    candidates = [line for line in lines if " WARNING " not in line and "See root cause above" not in line]
    errors = [line for line in candidates if "Error: " in line]
    packages = [line for line in errors if "ModuleNotFoundError: " in line]  # of which others are but the consequence
    chosen = (
        (packages or errors)[0] if errors else next((line for line in reversed(lines) if line.strip()), "no output")
    )
    return chosen.split("] ", 1)[-1].strip()[:300]


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

            def show() -> None:
                print(output.read(), end="", flush=True)

            note = server_note.wait_until_open(folder, supervisor, meanwhile=show)
            show()
    except KeyboardInterrupt:  # nobody waits for it any more
        supervisor.terminate()
        raise
    if note is None:
        return supervisor.wait()
    print(f"it runs on in the background, as process {supervisor.pid}: make status, make stop")
    return 0


def main() -> int:
    parser = cli.parser("Serve a run, or look after its server", "serve")
    parser.add_argument("action", choices=["start", "stop", "status", "check"], help=argparse.SUPPRESS)
    parser.add_argument("--detach", action="store_true", help="go on in the background once it serves")
    options = parser.parse_args()
    settings = cli.settings_from(options)
    folders = [settings.run_dir / name for name in address.FOLDERS]
    nobody = f"no server of {paths.label(settings.run_dir)} is running"
    if options.action == "check":  # only whether the arguments can be read
        return 0
    if options.action == "stop":
        print("\n".join(filter(None, map(server_control.stop, folders))) or nobody)
        return 0
    if options.action == "status":
        servers = [(code, text) for code, text in map(server_control.status, folders) if text]
        print("\n".join(text for _, text in servers) or f"{nobody}: `make serve` starts one")
        return max((code for code, _ in servers), default=server_control.NOT_RUNNING)
    if options.detach:
        return detach([word for word in sys.argv[2:] if word != "--detach"], address.serve_dir(settings))
    if leftovers := server_control.clear(address.serve_dir(settings)):  # before the look at what memory there is
        print(leftovers)
    plan = launch_plan.plan(settings)
    if newer := lineage.newer_rows(settings.run_dir):
        print(f"note: {newer}", flush=True)
    return start(plan)


if __name__ == "__main__":
    cli.run(main)
