"""A server for as long as it is needed: started as a user starts it, stopped at the end, whatever happens."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from lockstep import paths
from lockstep.errors import UserError
from lockstep.processes import child_processes

SCRIPT = paths.SCRIPTS / "serve_vllm.sh"
PATIENCE = 60  # seconds for what is in flight when it is told to stop


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(words: Sequence[str], mode: str, say: Callable[[str], None]) -> Iterator[str]:
    """The address, ending in /v1, of a server that passed the gate.

    Args:
        words: the settings as words of a command line.
        mode: of serve.mode.
        say: is told the command, and what the server says of itself.

    Raises:
        UserError: it did not start, did not pass, or ended too soon; it has said why on stderr.
    """
    port = free_port()
    command = [str(SCRIPT), *words, "--serve.mode", mode, "--serve.port", str(port), "--serve.host", "127.0.0.1"]
    say(f"$ {shlex.join([paths.label(SCRIPT), *command[1:]])}")
    environment = os.environ | {"PYTHON": sys.executable}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=partial(child_processes.die_with_parent, os.getpid()),
    )  # fmt: skip
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if line.startswith("in lockstep"):
                say(line.rstrip())
            if line.startswith("serving "):
                break
        else:
            raise UserError(f"the server for mode {mode} did not start: its own message stands above")
        try:
            yield f"http://127.0.0.1:{port}/v1"
        except UserError as error:
            if server.poll() is None:
                raise
            raise UserError(
                f"the server for mode {mode} ended before its work was done: its own message stands above; "
                "run the same command again to go on"
            ) from error
    finally:
        server.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=PATIENCE)
        if server.poll() is None:
            server.kill()
