"""Runs a server in the foreground: opens it once it is proved, closes it while it hangs, leaves no process behind.

`python -m lockstep.serving.supervisor start|stop|status SETTINGS…`, as serve_vllm.sh calls it.

vLLM starts processes that start processes. On Linux this one becomes their subreaper: whoever
loses its parent becomes our child, so that at the end all can be found, stopped and reaped.
"""

import argparse
import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import filelock
import psutil

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.endpoint import address, protocol, server_note
from lockstep.errors import UserError
from lockstep.processes import child_processes
from lockstep.serving import gate_report, launch_plan, probe
from lockstep.serving.launch_plan import LaunchPlan
from lockstep.serving.probe import Server, Unanswered
from lockstep.settings import cli

NOT_RUNNING = 3  # exit code of `status`: nothing that is in lockstep is served
RULES = "rules.json"  # for the middleware
PROGRESS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")


class _Told(BaseException):
    """A signal asked us to stop; carries its number. No Exception, which a library that is being imported might swallow."""


def start(plan: LaunchPlan) -> int:
    """Run the server; returns the exit code of this program.

    Raises:
        UserError: already served, not healthy in time, not proved, or the server ended by itself.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    with _alone(plan.folder), _signals() as numbers:
        child_processes.become_subreaper()
        log, opened = plan.folder / filenames.SERVER_LOG, plan.folder / "open"
        opened.unlink(missing_ok=True)  # of a supervisor that was killed
        server = Server(plan.url, secrets.token_urlsafe(32))
        try:
            _note_down(plan, "starting")
            _foresee(plan)
            process = _launch(plan, server.secret, opened, log)
            _wait_until_healthy(process, server, log, plan.timeout)
            _note_down(plan, "checking")
            _prove(plan, server)
            opened.touch()
            _note_down(plan, "open")
            _say_how(plan)
            _watch(process, server, plan, opened)
            raise UserError(f"the server ended by itself (exit code {process.wait()}): {_last_error(log)}")
        except _Told as told:
            print("stopping …")
            return 0 if told.args[0] == signal.SIGTERM else 128 + told.args[0]
        finally:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(OSError):
                opened.unlink(missing_ok=True)  # what is in flight ends; nothing new is let in
            left = 0.0
            try:
                left = _let_finish(server, plan.grace)
            finally:
                _end_all(left)
                with contextlib.suppress(OSError):
                    (plan.folder / filenames.SERVER_NOTE).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        known = server_note.read(folder) or {}
        raise UserError(
            f"{paths.label(folder.parent)} is already served at {known.get('url')} by process "
            f"{known.get('pid')}: run `make stop` first"
        ) from error
    try:
        yield
    finally:
        lock.release()


def clear(folder: Path) -> str:
    """Kill what a server of this folder has left, and say so; nothing where there is nothing.

    One whose supervisor and API server were both killed leaves an engine that waits for ever, and holds its memory. It is
    known by what its environment says.

    Raises:
        UserError: a server runs there.
    """
    if not folder.exists() or sys.platform != "linux":
        return ""
    found = []
    with _alone(folder):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                # a container may hold a folder of the same name
                ours = Path(f"/proc/{process.pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
                if ours and process.environ().get(protocol.RULES) == str(folder / RULES):
                    process.kill()
                    found.append(process)
        psutil.wait_procs(found, timeout=5)
    return f"ended {len(found)} processes that a server of {paths.label(folder.parent)} left behind" if found else ""


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means that a hang-up is no reason
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, _tell)
    yield numbers


def _launch(plan: LaunchPlan, secret: str, opened: Path, log: Path) -> subprocess.Popen[bytes]:
    rules = plan.folder / RULES
    plan.rules.write(rules)
    environment = os.environ | plan.environment | {
        protocol.RULES: str(rules), protocol.OPEN: str(opened), protocol.SECRET: secret,
    }  # fmt: skip
    environment["SPT_NOENV"] = "1"  # or vLLM's processes, whose titles are changed, lose the sight of it: see `clear`
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


def _foresee(plan: LaunchPlan) -> None:
    """Refuse, before a slow start, what the gate would refuse after it."""
    if found := plan.foresee():
        about = {"mode": plan.mode, "model": plan.model, "served": plan.served}
        label = gate_report.write(plan.folder, {**about, **found, "passed": False})
        raise UserError(f"the gate stays shut: {found['reasons'][0]}; see {label}")


def _prove(plan: LaunchPlan, server: Server) -> None:
    """Let the gate ask, keep its report, and refuse to go on where it does not pass."""
    print("checking that this is the model that was trained …", flush=True)
    started = time.monotonic()
    try:
        report = plan.prove(server)
    except Unanswered as error:
        raise UserError(
            f"the gate stays shut, the server fails: {error}; see {paths.label(plan.folder)}/server.log"
        ) from error
    report |= {"served": plan.served, "seconds": round(time.monotonic() - started, 1)}
    label = gate_report.write(plan.folder, report)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if not report["passed"]:
        raise UserError(f"the gate stays shut: {report['reasons'][0]}; see {label}")
    print(f"in lockstep: {gate_report.summary(report)} ({label})")


def _watch(process: subprocess.Popen[bytes], server: Server, plan: LaunchPlan, opened: Path) -> None:
    """Until the server ends: a token now and then, and the door shut while none comes."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(plan.pause)
            return
        before = _progress(server)
        try:
            probe.canary(server, plan.model, plan.canary, plan.patience)
            alive = True
        except Unanswered:
            now = _progress(server)
            alive = now is not None and now != before  # a full server lets a canary wait, and works all the same
        if alive and not opened.exists():
            opened.touch()
            print("the server answers again: open", flush=True)
            with contextlib.suppress(OSError):  # a full disk: what serves goes on
                _note_down(plan, "open")
        elif not alive and opened.exists() and process.poll() is None:
            opened.unlink()
            print("the server does not answer: closed until it does", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                _note_down(plan, "not answering")


def _progress(server: Server) -> str | None:
    """The engine's token counters."""
    try:
        text = str(server.ask("/metrics", timeout=5))
    except Unanswered:
        return None
    return "\n".join(line for line in text.splitlines() if line.startswith(PROGRESS))


def stop(folder: Path) -> str:
    """Stop the server that serves from `folder`; returns what to tell the user, nothing where there is none."""
    known = server_note.read(folder)
    process = known and server_note.running(known)
    if not known or not process:
        try:
            return clear(folder)
        except UserError as error:
            raise UserError(
                f"{paths.label(folder.parent)} is served, or about to be, by a process that {paths.label(folder)}/server.json "
                f"does not tell: stop it with Ctrl-C"
            ) from error
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    except psutil.AccessDenied as error:
        raise UserError(
            f"process {process.pid} at {known['url']} is another user's: it is not yours to stop"
        ) from error
    deadline = time.monotonic() + known["grace"] + 15
    while time.monotonic() < deadline:
        if not server_note.running(known):
            return f"stopped the server at {known['url']}"
        time.sleep(0.1)
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    return f"killed the server at {known['url']}, which did not stop by itself"


def status(folder: Path) -> tuple[int, str]:
    """(exit code, what to tell the user) about the server that serves from `folder`; no words where there is none."""
    known = server_note.read(folder)
    if not known or not server_note.running(known):
        return NOT_RUNNING, ""
    minutes = (time.time() - known["created"]) / 60
    text = f"{known['model']} ({known['mode']}) at {known['url']}: {known['state']}; process {known['pid']}, {minutes:.0f} min"
    if known["state"] != "open":
        return NOT_RUNNING, f"{text}; its log is {paths.label(folder)}/server.log"
    report = gate_report.read(folder)
    if not report:
        return NOT_RUNNING, f"{text}\n{paths.label(folder)}/{filenames.GATE_REPORT} is gone, or damaged"
    if anew := gate_report.replaced(known):
        return NOT_RUNNING, f"{text}\n{', '.join(anew)} was made anew since: `make stop`, and serve again"
    return 0, f"{text}\nin lockstep: {gate_report.summary(report)}"


def detach(words: list[str], folder: Path) -> int:
    """Start a supervisor of its own session, and return once it serves, or its exit code once it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):  # or the log is not ours to empty
        pass
    said = folder / "supervisor.log"
    with said.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "lockstep.serving.supervisor", "start", *words],
            stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        with said.open(encoding="utf-8", errors="replace") as stream:
            while True:
                code = child.poll()
                for line in stream:
                    print(line, end="", flush=True)
                    if line.startswith("serving "):
                        print(*stream, sep="", end="")  # the example
                        print(f"it runs on in the background, as process {child.pid}: make status, make stop")
                        return 0
                if code is not None:
                    return code
                time.sleep(0.2)
    except KeyboardInterrupt:  # nobody waits for it any more
        child.terminate()
        raise


def _tell(number: int, _: FrameType | None) -> None:
    raise _Told(number)


def _note_down(plan: LaunchPlan, state: str) -> None:
    server_note.write(
        plan.folder, state, url=plan.url, model=plan.model, mode=plan.mode, served=plan.served, grace=plan.grace
    )


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


def _say_how(plan: LaunchPlan) -> None:
    body = json.dumps({"model": plan.model, "messages": [{"role": "user", "content": "你是谁？"}]}, ensure_ascii=False)
    key = ' -H "Authorization: Bearer $LOCKSTEP_API_KEY"' if protocol.key() else ""
    curl = f"curl {plan.url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    # at once: `detach` shows what there is when the first line has come
    print(f"serving {plan.model} at {plan.url}; Ctrl-C or `make stop` ends it. Try\n\n  {curl}\n", flush=True)


def _last_error(log: Path) -> str:
    """The most telling line of vLLM's log: the root error, not what followed from it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if " WARNING " not in line and "See root cause above" not in line]
    errors = [line for line in told if "Error: " in line]
    chosen = errors[0] if errors else next((line for line in reversed(lines) if line.strip()), "no output")
    return chosen.split("] ", 1)[-1].strip()[:300]


def _let_finish(server: Server, grace: float) -> float:
    """Wait for the answers to what was let in: vLLM ends without one what has not reached its engine. Returns what is left of the time."""
    deadline = time.monotonic() + grace
    with contextlib.suppress(Unanswered):  # it is gone already, or hangs
        while server.in_flight() and time.monotonic() < deadline:
            time.sleep(0.1)
    return max(deadline - time.monotonic(), min(grace, 5.0))


def _end_all(grace: float) -> None:
    """TERM to the server, KILL to whoever is left, and reap all."""
    children = psutil.Process().children(recursive=True)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    psutil.wait_procs(children, timeout=grace)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = psutil.Process().children(recursive=True)
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.1)


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
        print("\n".join(filter(None, map(stop, folders))) or nobody)
        return 0
    if options.action == "status":
        found = [(code, text) for code, text in map(status, folders) if text]
        print("\n".join(text for _, text in found) or f"{nobody}: `make serve` starts one")
        return max((code for code, _ in found), default=NOT_RUNNING)
    if options.detach:
        return detach([word for word in sys.argv[2:] if word != "--detach"], address.serve_dir(settings))
    if said := clear(address.serve_dir(settings)):  # before the look at what memory there is
        print(said)
    return start(launch_plan.plan(settings))


if __name__ == "__main__":
    cli.run(main)
