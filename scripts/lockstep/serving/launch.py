"""From nothing to a healthy vLLM: somebody answers on its port from the first second, until it does so itself."""

import contextlib
import os
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.endpoint import protocol
from lockstep.errors import UserError
from lockstep.processes import child_processes
from lockstep.serving import preflight
from lockstep.serving.launch_plan import LaunchPlan
from lockstep.serving.loading import LoadingServer
from lockstep.serving.probe import Server, Unanswered

BACKLOG = 2048  # connections that may wait to be accepted, as uvicorn has it
POLL = 0.5  # seconds between two looks at a server that starts

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Launched:
    """vLLM's process, the pipe on which it says that it accepts connections, and who answers until then."""

    process: "subprocess.Popen[bytes]"
    ready: int
    meanwhile: LoadingServer


@contextlib.contextmanager
def launched(plan: LaunchPlan, secret: str, opened: Path, log: Path, state: Callable[[], str]) -> Iterator[Launched]:
    """Launch vLLM on a socket on which 503 is answered as long as it loads; after the block the socket is its own.

    The child inherits the socket: between the one that answers and the other nothing is refused or lost.

    Args:
        secret: of this start.
        opened: the file by which the middleware knows that others are let in.
        log: what vLLM prints.
        state: what is going on, for those who ask meanwhile.

    Raises:
        UserError: the port is taken.
    """
    address = urlsplit(plan.url)
    listener = preflight.listener(address.hostname or "", address.port or 0)
    ready, telling = os.pipe()
    try:
        listener.listen(BACKLOG)
        process = _launch(plan, secret, opened, log, {protocol.LISTENER: listener.fileno(), protocol.READY: telling})
        os.close(telling)
        meanwhile = LoadingServer(listener, plan.rules.allowed_origins, state)
        try:
            yield Launched(process, ready, meanwhile)
        finally:
            meanwhile.stop()
    finally:
        listener.close()
        os.close(ready)


def _launch(
    plan: LaunchPlan, secret: str, opened: Path, log: Path, inherited: dict[str, int]
) -> "subprocess.Popen[bytes]":
    rules = plan.folder / filenames.RULES
    plan.rules.write(rules)
    environment = os.environ | plan.environment | {
        protocol.RULES: str(rules), protocol.OPEN: str(opened), protocol.SECRET: secret,
    } | {name: str(number) for name, number in inherited.items()}  # fmt: skip
    environment["SPT_NOENV"] = "1"  # vLLM's processes change their titles, and must keep what `clear` knows them by
    environment.pop("VLLM_API_KEY", None)
    if key := protocol.key():
        environment["VLLM_API_KEY"] = key  # a second lock behind ours
    with log.open("wb") as stream:
        return subprocess.Popen(
            plan.command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True, pass_fds=list(inherited.values()),
            preexec_fn=partial(child_processes.die_with_parent, os.getpid()),
        )  # fmt: skip


def command_line(plan: LaunchPlan) -> str:
    """What is launched, as it could be typed, without what only the supervisor can give."""
    return shlex.join([f"{name}={value}" for name, value in plan.environment.items()] + plan.command)


def wait_until_healthy(server: Server, launch: Launched, log: Path, timeout: float, tell: Tell) -> None:
    """Wait until vLLM answers by itself.

    Args:
        tell: is told again and again for how long it has loaded.

    Raises:
        UserError: it ended, or needs more than `timeout` seconds.
    """
    started = time.monotonic()
    listens = False
    while (waited := time.monotonic() - started) < timeout:
        if launch.process.poll() is not None:
            raise UserError(f"the server did not start: {last_error(log)}; see {paths.label(log)}")
        if not listens:
            tell(f"{waited:.0f} s so far, of at most {timeout:.0f}")
            listens = bool(select.select([launch.ready], [], [], POLL)[0]) and bool(os.read(launch.ready, 1))
            continue
        launch.meanwhile.stop()
        with contextlib.suppress(Unanswered):
            server.ask("/health", timeout=5)
            server.in_flight()  # and it knows this start's secret
            return
        time.sleep(POLL)
    raise UserError(
        f"the server was not healthy within {timeout:.0f} s (--serve.startup_timeout); see {paths.label(log)}"
    )


def last_error(log: Path) -> str:
    """The most telling line of vLLM's log: the root error, not what followed from it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    candidates = [line for line in lines if " WARNING " not in line and "See root cause above" not in line]
    errors = [line for line in candidates if "Error: " in line]
    packages = [line for line in errors if "ModuleNotFoundError: " in line]  # of which others are but the consequence
    chosen = (
        (packages or errors)[0] if errors else next((line for line in reversed(lines) if line.strip()), "no output")
    )
    return chosen.split("] ", 1)[-1].strip()[:300]
