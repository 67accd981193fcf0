"""Secrets stay in the environment: after all stages and a dozen failures they stand in no file, message or command line."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import hub as hub_stub
from support import tiny
from support.programs import ROOT, script_environment
from support.serving import free_port

pytestmark = [pytest.mark.faults, pytest.mark.promise("Secrets stay in the environment")]

NAMES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "LOCKSTEP_API_KEY", "LOCKSTEP_UI_PASSWORD", "WANDB_API_KEY",
    "OPENAI_API_KEY", "VLLM_API_KEY",
)  # fmt: skip
SECRETS = {name: f"canary{number}x" + "Zq7" * 8 for number, name in enumerate(NAMES)}
TRAIN = ("--train.max_steps", "2", "--lora.r", "4", "--train.sample_tokens", "4")
HANGS = 900.0  # seconds: an evaluation starts two servers, a minute each where nothing else runs


class Watch(threading.Thread):
    """Reads the command lines of all processes for as long as it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.seen, self.rounds = threading.Event(), set[str](), 0

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.rounds += 1
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    text = file.read_bytes().decode("utf-8", "replace")
                    self.seen |= {name for name, secret in SECRETS.items() if secret in text}


def leaks(text: str) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret in text]


class Home:
    """A home whose stages run with a canary in every secret's place."""

    def __init__(self, folder: Path, hub: hub_stub.Hub) -> None:
        self.folder, self.hub = folder, hub
        self.words = ("--model.source", "local", "--model.path", str(folder / "tiny"), "--model.name", "tiny",
                      "--data.train_file", str(folder / "rows.jsonl"))  # fmt: skip

    def stage(self, script: str, *words: str, limit: int = 0, **extra: str) -> int:
        def starve() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        settings = {"HF_ENDPOINT": self.hub.url, "MODELSCOPE_ENDPOINT": self.hub.url, "HF_HUB_DISABLE_XET": "1",
                    "HF_HUB_DOWNLOAD_TIMEOUT": "3", "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "0", "MODELSCOPE_CACHE": str(self.folder / "cache"),
                    "HF_HOME": str(self.folder / "hf")}  # fmt: skip
        answer = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / script), *words],
            env=script_environment(self.folder, **settings | SECRETS | extra), cwd=self.folder, capture_output=True, text=True,
            timeout=HANGS, check=False, preexec_fn=starve if limit else None,
        )  # fmt: skip
        assert leaks(answer.stdout + answer.stderr) == []
        return answer.returncode

    @contextlib.contextmanager
    def running(self, until: str, *command: str) -> Iterator[str]:
        """A program that runs for as long as the block lasts, once it has printed `until`; that line."""
        program = subprocess.Popen(
            command, env=script_environment(self.folder, PYTHON=sys.executable, ACCEL="cpu", **SECRETS), cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        said: list[str] = []
        assert program.stdout
        try:
            for line in program.stdout:
                said.append(line)
                if until in line:
                    break
            else:
                raise AssertionError("".join(said))
            yield line
        finally:
            os.killpg(program.pid, signal.SIGTERM)
            said += program.communicate(timeout=90)[0].splitlines()
            assert leaks("".join(said)) == []

    def files(self) -> list[tuple[str, str]]:
        """(file, secret) of every secret in a file, or in a file's name."""
        found = []
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.is_relative_to(self.folder / "tiny"):
                text = path.read_bytes().decode("utf-8", "replace") + str(path)
                found += [(path.relative_to(self.folder).as_posix(), name) for name in leaks(text)]
        return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    tiny.model(folder / "tiny")
    tiny.rows(folder / "rows.jsonl", 40)
    with hub_stub.serve(folder / "tiny") as hub:
        yield Home(folder, hub)


@pytest.fixture(autouse=True)
def watched(home: Home) -> Iterator[None]:
    watch = Watch()
    watch.start()
    yield
    watch.over.set()
    watch.join()
    assert watch.rounds and not watch.seen
    assert home.files() == []


def test_all_stages_of_a_run(home: Home, record_property: Callable[[str, object], None]) -> None:
    record_property("cases", 6)
    for source in ("hub", "modelscope"):  # the stand-in is told the token, and nobody else
        assert (
            home.stage(
                "00_download_model.py", "--model.source", source, "--model.id", "org/tiny", "--model.name", source
            )
            == 0
        )
    assert any(SECRETS["HF_TOKEN"] in headers.get("authorization", "") for headers in home.hub.headers)
    for script, words in (
        ("00_download_model.py", ()), ("01_data_collator.py", ()), ("02_train_qlora.py", TRAIN), ("03_merge_lora.py", ()),
        ("03_merge_lora.py", ("--base",)),
    ):  # fmt: skip
        assert home.stage(script, "--run", "r", *home.words, *words) == 0


HUB = ("--model.id", "org/tiny", "--model.name", "x", "--model.source")
FAILURES: dict[str, Callable[[Home], int]] = {
    "no such config": lambda h: h.stage("01_data_collator.py", "--config", "absent.yaml"),
    "no such setting": lambda h: h.stage("02_train_qlora.py", "--train.lerning_rate", "1"),
    "no such model folder": lambda h: h.stage("00_download_model.py", "--model.source", "local", "--model.path", "absent"),
    "no such model on the Hub": lambda h: h.stage("00_download_model.py", "--model.source", "hub", "--model.id", "org/none"),
    "401 of the Hub": lambda h: failing(h, "hub", "401"),
    "401 of ModelScope": lambda h: failing(h, "modelscope", "401"),
    "500 of the Hub": lambda h: failing(h, "hub", "500"),
    "a gated model": lambda h: gated(h),
    "nobody there": lambda h: h.stage("00_download_model.py", *HUB, "hub", HF_ENDPOINT=f"http://127.0.0.1:{free_port()}"),
    "stages out of order": lambda h: h.stage("03_merge_lora.py", *h.words, "--run", "none"),
    "the disk is full at the data": lambda h: h.stage("01_data_collator.py", *h.words, "--run", "disk", limit=2000),
    "other settings than before": lambda h: h.stage("02_train_qlora.py", *h.words, "--run", "r", *TRAIN, "--train.seed", "7"),
    "a merge past its bound": lambda h: h.stage("03_merge_lora.py", *h.words, "--run", "r", "--merge.strategy", "original", "--merge.max_kl", "1e-12", "--force"),
    "no server to ask": lambda h: h.stage("04_client_openai.py", "Hello?", "--serve.port", str(free_port()), "--run", "r"),
    "a traceback on request": lambda h: h.stage("01_data_collator.py", "--config", "absent.yaml", LOCKSTEP_DEBUG="1"),
}  # fmt: skip


def failing(home: Home, source: str, status: str) -> int:
    home.hub.faults["model.safetensors"] = status
    try:
        return home.stage("00_download_model.py", *HUB, source)
    finally:
        home.hub.faults.clear()


def gated(home: Home) -> int:
    home.hub.gated = True
    try:
        return home.stage("00_download_model.py", *HUB, "hub")
    finally:
        home.hub.gated = False


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure(home: Home, failure: str) -> None:
    assert FAILURES[failure](home) != 0


def test_serving_asking_evaluating_and_chatting(home: Home, record_property: Callable[[str, object], None]) -> None:
    """With the real server, outside loopback, where key and password are needed."""
    record_property("cases", 8)
    words = (*home.words, "--run", "r")
    if not (home.folder / "outputs/r/merged").exists():
        for script, more in (("00_download_model.py", ()), ("01_data_collator.py", ()), ("02_train_qlora.py", TRAIN), ("03_merge_lora.py", ())):  # fmt: skip
            assert home.stage(script, *words, *more) == 0
    port, page = str(free_port()), str(free_port())
    there = ("--base-url", f"http://127.0.0.1:{port}/v1")
    serve = (str(ROOT / "scripts/serve_vllm.sh"), *words, "--serve.host", "0.0.0.0", "--serve.port", port,
             "--serve.max_model_len", "512")  # fmt: skip
    with home.running("serving r at", *serve):
        question = ("04_client_openai.py", "你是谁？", *there, "--run", "r")
        assert home.stage(*question, "--stats") == 0
        assert home.stage(*question, "--curl") == 0  # which names the variable, not the key
        assert home.stage(*question, LOCKSTEP_API_KEY="wrong" * 5) == 2
        assert home.stage(*question, "--model", "absent") == 2
        assert home.stage("monitor.py", "--once", *there, "--interval", "0.2") == 0
        chat = (
            sys.executable,
            str(ROOT / "scripts/06_chat_ui.py"),
            "--run",
            "r",
            *there,
            "--ui.host",
            "0.0.0.0",
            "--ui.port",
            page,
        )
        with home.running("chat page at", *chat):
            body = urllib.parse.urlencode({"username": "lockstep", "password": "wrong"}).encode()
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"http://127.0.0.1:{page}/login", body, timeout=20)
    assert home.stage("05_evaluate.py", *words, "--serve.max_model_len", "512", "--serve.port", str(free_port())) == 0
    assert home.stage("05_evaluate.py", *words, "--report") == 0
