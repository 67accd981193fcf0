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
from lockstep.endpoint import address, server_note
from lockstep.endpoint.server_note import Note
from lockstep.errors import UserError
from lockstep.processes import busy, child_processes
from lockstep.serving import gate_report
from lockstep.settings import cli

SCRIPT = paths.SCRIPTS / "serve_vllm.sh"
PATIENCE = 60  # seconds for what is in flight when it is told to stop


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def served(words: Sequence[str], mode: str, say: Callable[[str], None]) -> Iterator[Note]:
    """The note of a server that passed the gate, for as long as the block lasts.

    Args:
        words: the settings as words of a command line.
        mode: of serve.mode.
        say: is told the command, and the outcome of the gate.

    Raises:
        UserError: it did not start, did not pass, or ended too soon; it has said why on stderr.
    """
    settings = [*words, "--serve.mode", mode, "--serve.port", str(free_port()), "--serve.host", "127.0.0.1"]
    folder = address.serve_dir(cli.settings_from(cli.parser("").parse_args(settings)))
    say(f"$ {shlex.join([paths.label(SCRIPT), *settings])}")
    server = subprocess.Popen(
        [str(SCRIPT), *settings], env=os.environ | {"PYTHON": sys.executable}, stdout=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=partial(child_processes.die_with_parent, os.getpid()),
    )  # fmt: skip
    try:
        with busy.waiting(f"starting and checking the server for mode {mode}"):
            note = server_note.wait_until_open(folder, server)
        if note is None:
            raise UserError(f"the server for mode {mode} did not start: its own message stands above")
        say(gate_report.outcome(folder))
        try:
            yield note
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
