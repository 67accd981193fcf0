"""Runs a server in the foreground until it ends or is told to, and leaves no process behind.

`python -m lockstep.supervisor start --folder F --url U --model M --timeout S -- COMMAND …`
`python -m lockstep.supervisor stop --folder F`

vLLM starts processes that start processes. On Linux this one becomes their subreaper: whoever
loses its parent becomes our child, so that at the end all can be found, stopped and reaped.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

import filelock
import psutil

from lockstep import cli, manifest, paths
from lockstep.errors import UserError

GRACE = 35.0  # seconds for requests in flight, a little more than vLLM's --shutdown-timeout
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class _Told(Exception):
    """A signal asked us to stop; carries its number."""


def start(command: list[str], folder: Path, url: str, model: str, timeout: float, grace: float = GRACE) -> int:
    """Run the server; returns the exit code of this program.

    Args:
        folder: where server.log and server.json go.
        url: the endpoint, ending in /v1.
        timeout: seconds within which the server must be healthy.
        grace: seconds between asking the server to end and making it.

    Raises:
        UserError: already served, not healthy in time, or the server ended by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        known = _note(folder) or {}
        raise UserError(
            f"{paths.label(folder.parent)} is already served at {known.get('url')} by process "
            f"{known.get('pid')}: run `make stop` first"
        ) from error
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means that a hang-up is no reason
        signals.append(signal.SIGHUP)
    for number in signals:
        signal.signal(number, _tell)
    _prctl(PR_SET_CHILD_SUBREAPER)
    log = folder / "server.log"
    try:
        with log.open("wb") as stream:
            server = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        me = {"pid": os.getpid(), "created": psutil.Process().create_time(), "url": url, "model": model}
        manifest.write_json(folder / "server.json", me)
        _wait_until_healthy(server, url, log, timeout)
        _say_how(url, model)
        code = server.wait()
        raise UserError(f"the server ended by itself (exit code {code}): {_last_error(log)}")
    except _Told as told:
        print("stopping …")
        return 0 if told.args[0] == signal.SIGTERM else 128 + told.args[0]
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        _end_all(grace)
        (folder / "server.json").unlink(missing_ok=True)
        lock.release()


def stop(folder: Path) -> str:
    """Stop the server that serves from `folder`; returns what to tell the user."""
    known = _note(folder)
    process = known and _running(known)
    if not known or not process:
        return f"no server of {paths.label(folder.parent)} is running"
    process.terminate()
    deadline = time.monotonic() + GRACE + 15
    while time.monotonic() < deadline:
        if not _running(known):
            return f"stopped the server at {known['url']}"
        time.sleep(0.1)
    for one in [*process.children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return f"killed the server at {known['url']}, which did not stop by itself"


def _note(folder: Path) -> dict[str, Any] | None:
    try:
        note: dict[str, Any] = json.loads((folder / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note


def _running(note: dict[str, Any]) -> psutil.Process | None:
    """The supervisor that wrote the note, unless it is gone and its number is someone else's."""
    try:
        process = psutil.Process(note["pid"])
        ours = abs(process.create_time() - note["created"]) < 1
        return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError):
        return None


def _tell(number: int, _: FrameType | None) -> None:
    raise _Told(number)


def _prctl(option: int, value: int = 1) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # even SIGKILL of the supervisor leaves no server


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    print(f"starting vLLM, which takes a minute; its log is {paths.label(log)}")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback goes through no proxy
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(f"the server did not start: {_last_error(log)}; see {paths.label(log)}")
        try:
            with direct.open(f"{url.removesuffix('/v1')}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise UserError(
        f"the server was not healthy within {timeout:.0f} s (--serve.startup_timeout); see {paths.label(log)}"
    )


def _say_how(url: str, model: str) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "你是谁？"}]}, ensure_ascii=False)
    print(f"serving {model} at {url}; Ctrl-C or `make stop` ends it. Try\n")
    key = ' -H "Authorization: Bearer $LOCKSTEP_API_KEY"' if os.environ.get("LOCKSTEP_API_KEY") else ""
    print(f"  curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'\n", flush=True)


def _last_error(log: Path) -> str:
    """The most telling line of vLLM's log: the root error, not what followed from it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "Error: " in line and "See root cause above" not in line]
    chosen = errors[0] if errors else next((line for line in reversed(lines) if line.strip()), "no output")
    return chosen.split("] ", 1)[-1].strip()[:300]


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--url", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--timeout", type=float, default=0)
    parser.add_argument("--grace", type=float, default=GRACE)
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:cut])
    if options.action == "stop":
        print(stop(options.folder))
        return 0
    return start(sys.argv[cut + 1 :], options.folder, options.url, options.model, options.timeout, options.grace)


if __name__ == "__main__":
    cli.run(main)
