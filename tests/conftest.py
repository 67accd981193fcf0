"""Fixtures that several folders of tests share."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from filelock import FileLock
from support import programs, tiny
from support.figures import pytest_runtest_makereport  # noqa: F401 - a hook
from support.misbehaving import Handler, Server
from support.world import World, built

if TYPE_CHECKING:
    from support.serving import Home

Run = Callable[..., programs.Ended]

# A shell's background job ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["LC_ALL"] = "C.UTF-8"  # messages are English, whatever the machine's language
os.environ.pop("LANGUAGE", None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "2"
os.environ["GOMP_SPINCOUNT"] = "1000"
# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def stage(tmp_path: Path) -> Run:
    """Run `scripts/NAME` with arguments; its home is `tmp_path`."""
    return partial(programs.run, tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> "Home":
    """A finished run with the dequantized base, made once for all workers; whoever changes it copies it."""
    from support.serving import finished_run

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(f"{folder}.lock"):
        return finished_run(folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with built(tmp_path_factory.mktemp("home")) as made:
        yield made
