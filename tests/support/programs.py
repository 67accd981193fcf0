"""Scripts, run as programs: fresh ones, or forked from a process that has imported what they import.

Importing takes longer than what most tests have a stage do. Libraries read their part of the environment when they
are imported: those of the forked programs know HUB as the address of the Hub, and a test that asks for anything else
gets a fresh program. How stages start for users, tests/e2e and the demo show.
"""

import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.util
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300  # seconds


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


HUB_PORT = free_port()  # where a test may serve a stub of the Hub, see support/hub.py
HUB = {
    "HF_ENDPOINT": f"http://127.0.0.1:{HUB_PORT}", "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5",
    "HF_HUB_DOWNLOAD_TIMEOUT": "5",
}  # fmt: skip
READ_LATER = ("LOCKSTEP_", "MODELSCOPE_", "HF_TOKEN")  # what is read when it is needed, or by what is imported then
STARTERS = ("00", "03")  # scripts whose work is in fresh processes; those are forked, too
FORKED = multiprocessing.get_context("forkserver")
Ended = subprocess.CompletedProcess[str]


def script_environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of a script whose models/ and outputs/ are in `home`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "LOCKSTEP_HOME"}
    return kept | {"LOCKSTEP_HOME": str(home)} | extra


def run(home: Path, script: str, *words: str, fresh: bool = False, file_size: int = 0, **extra: str) -> Ended:
    """Run `scripts/SCRIPT` with arguments, in its home.

    Args:
        fresh: as a program of its own in any case.
        file_size: what its files may grow to, in bytes; 0 is no limit.
        extra: more of its environment.
    """
    command = [sys.executable, str(ROOT / "scripts" / script), *words]
    environment = script_environment(home, **extra)
    forkable = all(
        name.startswith(READ_LATER) or name.endswith("_PROXY") or HUB.get(name) == value
        for name, value in extra.items()
    )
    if fresh or not forkable:
        return subprocess.run(
            command, env=environment, cwd=home, capture_output=True, text=True, timeout=TIMEOUT, check=False,
            preexec_fn=(lambda: limit(file_size)) if file_size else None,
        )  # fmt: skip
    ready()
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        process = FORKED.Process(target=become, args=(command[1:], environment, home, said, file_size))
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, TIMEOUT)
        texts = [file.read_bytes().decode() for file in said]
    return Ended(command, process.exitcode, *texts)


def ready() -> None:
    """Start the process that is forked from, where it does not run."""
    with patch.dict(os.environ, PYTHONPATH=str(ROOT / "tests"), **HUB):  # which it starts with
        os.environ.pop("HF_HUB_OFFLINE", None)
        FORKED.set_forkserver_preload(["support.warm"])
        multiprocessing.forkserver.ensure_running()


def become(argv: list[str], environment: dict[str, str], home: Path, said: list[Path], file_size: int) -> None:
    """In the forked process: be the program."""
    assert "support.warm" in sys.modules
    for number, file in enumerate((Path(os.devnull), *said)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(home)
    sys.argv, sys.path[0:0] = argv, [str(Path(argv[0]).parent)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if Path(argv[0]).name.startswith(STARTERS):
        one_thread()  # several would not outlive a fork
        multiprocessing.util.register_after_fork(one_thread, lambda again: again())
        multiprocessing.get_context = lambda method=None: multiprocessing.context.ForkContext()
        multiprocessing.forkserver.ensure_running = lambda: None
    if file_size:
        limit(file_size)
    runpy.run_path(argv[0], run_name="__main__")


def one_thread() -> None:
    """For torch, which asks after a fork to be told once more."""
    sys.modules["torch"].set_num_threads(1)


def limit(file_size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
