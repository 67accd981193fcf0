"""Stages forked after their imports, so that one starts in milliseconds and ends where it is told to.

As a program it reads one task a line and forks a child for each; `Nursery` starts it and gives it tasks.
A child watches its own calls: of the functions that write, rename, sync and save, each place in the
scripts from which one is called is a site, where a task may kill it, signal it or have the call fail.
With `count_sites` it notes how often it comes to each, with `watch_reads` what is read from a folder whose
manifest does not verify.
"""

import contextlib
import errno
import faulthandler
import fcntl
import gc
import hashlib
import json
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.util
import os
import resource
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = str(ROOT / "scripts") + "/"
# What changes a disk: C functions by name, Python functions of libraries that end in native code by file and name.
OS_CALLS = {
    "replace", "rename", "fsync", "fdatasync", "link", "symlink", "unlink", "remove", "rmdir", "mkdir", "truncate",
    "ftruncate", "sendfile", "copy_file_range", "write", "pwrite",
}  # fmt: skip
FILE_CALLS = {"write", "writelines", "truncate", "flush", "savez", "serialize_file"}
LIBRARY_CALLS = {
    ("torch/serialization.py", "save"), ("safetensors/torch.py", "save_file"), ("datasets/arrow_writer.py", "finalize"),
    ("datasets/arrow_writer.py", "write_table"), ("datasets/arrow_dataset.py", "save_to_disk"), ("shutil.py", "copyfile"),
    ("lockstep/merging/safetensors_stream.py", "write"),
}  # fmt: skip
PATIENCE = 60.0  # seconds after which a stage hangs
PIPE = 2**20  # bytes that a stage may print
BUFFERED = {"write", "writelines", "flush"}
C_CALLS = OS_CALLS | FILE_CALLS
Trace = Callable[[FrameType, str, Any], Any]


@dataclass
class Task:
    """What a child runs, and what becomes of it.

    do: kill, term, full (the disk), memory (out of it), or nothing.
    at: the site where `do` happens, or "call FILE.py FUNCTION", the `time`-th time.
    """

    argv: list[str]
    notes: str = ""  # file for what it saw: sites, reads
    do: str = ""
    at: str = ""
    time: int = 1
    kill_after: float = 0.0  # seconds
    file_size: int = 0  # limits, in bytes
    address_space: int = 0  # beyond what the forked child has
    count_sites: bool = False
    watch_reads: bool = False
    env: dict[str, str] = field(default_factory=dict)


# ---- in the child ----


def lines_of(code: CodeType) -> set[int | None]:
    return {line for _, _, line in code.co_lines()}


class Watch:
    """Notes sites, or acts at one place; `begin` says from where it looks."""

    def __init__(self, task: Task, home: str, reads: "Reads") -> None:
        self.task, self.home, self.reads = task, home, reads
        self.sites: Counter[str] = Counter()
        self.calls = 0
        self.pid, self.counting = os.getpid(), threading.Lock()

    def begin_anew(self) -> None:
        """In a process that the stage has forked: what it sees is noted in a file of its own."""
        self.sites.clear()
        self.reads.bad.clear()
        self.counting = threading.Lock()
        self.task.notes += f".{os.getpid()}"
        if torch := sys.modules.get("torch"):  # makes its threads anew after a fork, and not where several threads ask
            torch.set_num_threads(torch.get_num_threads())
        multiprocessing.util.Finalize(None, self.write_notes, exitpriority=1)

    def begin(self) -> None:
        """Look at every call, or where something is to happen, only as long as the function runs that it happens in."""
        if not self.task.at or self.task.at.startswith(" "):  # a thread of a library's, without a line of ours
            threading.setprofile(self.profile())
            sys.setprofile(self.profile())
        else:
            look = self.calls_of if self.task.at.startswith("call ") else self.sites_in
            threading.settrace(look())
            sys.settrace(look())

    def calls_of(self) -> Trace:
        """For sys.settrace: acts at a call of a function."""
        file, name = self.task.at.split()[1:]
        file = SCRIPTS + file

        def entered(frame: FrameType, event: str, arg: Any) -> None:
            if frame.f_code.co_filename == file and frame.f_code.co_name == name:
                self.calls += 1
                if self.calls == self.task.time:
                    self.act()

        return entered

    def sites_in(self) -> Trace:
        """For sys.settrace: looks at every call while the innermost of our functions at the site runs."""
        name, place = self.task.at.split(" > ")[-1].split()[0].split(":")
        (file,) = map(str, Path(SCRIPTS).rglob(name))
        profile, running = self.profile(), Counter[int]()

        def entered(frame: FrameType, event: str, arg: Any) -> Trace | None:
            code = frame.f_code
            if code.co_filename != file or not (code.co_name == place or place in map(str, lines_of(code))):
                return None
            frame.f_trace_lines = False
            running[threading.get_ident()] += 1
            sys.setprofile(profile)
            return left

        def left(frame: FrameType, event: str, arg: Any) -> Trace:
            if event == "return":
                running[threading.get_ident()] -= 1
                if not running[threading.get_ident()]:
                    sys.setprofile(None)
            return left

        return entered

    def profile(self) -> Callable[[FrameType, str, Any], None]:
        """For sys.setprofile. Millions of calls come by: all but a few must be let go at once, by their names."""
        names = {name for _, name in LIBRARY_CALLS}

        def called(frame: FrameType, event: str, arg: Any) -> None:
            if event == "c_call":
                if arg.__name__ in C_CALLS:
                    self.look_at(frame, self.c_operation(arg))
            elif event == "call" and frame.f_code.co_name in names:
                self.look_at(frame, self.library_operation(frame.f_code))

        return called

    def look_at(self, frame: FrameType, operation: str | None) -> None:
        if not operation:
            return
        site = self.site(frame, operation)
        with self.counting:
            self.sites[site] += 1
            now = site == self.task.at and self.sites[site] == self.task.time
        if now:
            self.act()

    def c_operation(self, function: Any) -> str | None:
        name = str(function.__name__)
        if name in OS_CALLS and function.__module__ == "posix":
            return f"os.{name}"
        if name in FILE_CALLS:
            file = getattr(getattr(function, "__self__", None), "name", None)
            if name == "serialize_file" or (isinstance(file, str) and file.startswith(self.home)):
                return name
        return None

    def library_operation(self, code: CodeType) -> str:
        """The operation that a Python function stands for, or "" for all others."""
        names = [name for file, name in LIBRARY_CALLS if code.co_name == name and code.co_filename.endswith(file)]
        return names[0] if names else ""

    def site(self, frame: FrameType, operation: str) -> str:
        """The lines of ours that led there, the operation, and the function of a library that called it.

        All that a function writes into buffers is one place.
        """
        inner = frame.f_back if self.library_operation(frame.f_code) else frame
        buffered = operation in BUFFERED
        lines: list[str] = []
        walk = inner
        while walk:
            code = walk.f_code
            if code.co_filename.startswith(SCRIPTS) and code.co_name not in {"run", "<module>"}:
                place = code.co_name if buffered and not lines else walk.f_lineno
                lines.append(f"{Path(code.co_filename).name}:{place}")
            walk = walk.f_back
        code = inner.f_code if inner else frame.f_code
        through = "" if code.co_filename.startswith(SCRIPTS) else f" in {Path(code.co_filename).name}:{code.co_name}"
        return f"{' > '.join(reversed(lines))} {'write' if buffered else operation}{'' if buffered else through}"

    def act(self) -> None:
        match self.task.do:
            case "kill":  # of what it has started nobody knows, outside
                os.kill(self.pid, signal.SIGKILL)
            case "term":
                os.kill(self.pid, signal.SIGTERM)
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "memory":
                raise MemoryError("injected")
            case "cuda memory":
                import torch

                raise torch.OutOfMemoryError("injected")

    def write_notes(self) -> None:
        if self.task.notes:
            file = Path(self.task.notes)
            growing = file.with_name(f"growing.{os.getpid()}")  # a process that lost its parent may be killed here
            growing.write_text(json.dumps({"sites": self.sites, "reads": self.reads.bad}))
            growing.rename(file)


class Reads:
    """An audit hook: files that are read from a stage's folder before that folder was found whole."""

    FOLDERS = ("data", "adapter", "merged", "base", "eval")

    def __init__(self, home: Path) -> None:
        self.home, self.whole, self.bad, self.busy = home, set[Path](), list[str](), False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or self.busy or not isinstance(arguments[0], str) or not self.reading(arguments):
            return
        folder = self.folder_of(Path(arguments[0]))
        if folder is None or folder in self.whole or self.checking():
            return
        self.busy = True
        try:
            if verifies(folder):
                self.whole.add(folder)
            else:
                self.bad.append(f"{arguments[0]} by {''.join(traceback.format_list(traceback.extract_stack()[-4:-1]))}")
        finally:
            self.busy = False

    @staticmethod
    def reading(arguments: tuple[Any, ...]) -> bool:
        mode, flags = arguments[1], arguments[2]
        return "r" in mode if isinstance(mode, str) else not (flags or 0) & (os.O_WRONLY | os.O_RDWR)

    def folder_of(self, path: Path) -> Path | None:
        if not path.is_relative_to(self.home):
            return None
        match path.relative_to(self.home).parts:
            case ["models", name, _, *_] if not name.startswith("."):
                return self.home / "models" / name
            case ["outputs", run, name, _, *_] if name in self.FOLDERS:
                return self.home / "outputs" / run / name
            case ["outputs", run, "checkpoints", name, _, *_] if name.startswith("checkpoint-"):
                return self.home / "outputs" / run / "checkpoints" / name
        return None

    @staticmethod
    def checking() -> bool:
        """Whether the reader is what verifies folders."""
        frame: FrameType | None = sys._getframe()
        while frame:
            if frame.f_code.co_filename.endswith(("lockstep/artifacts/manifest.py", "lockstep/artifacts/stage.py")):
                return True
            frame = frame.f_back
        return False


def verifies(folder: Path) -> bool:
    """Whether all files have the hashes that manifest.json gives them; apart from the code under test."""
    try:
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
            "manifest.json"
        }
        return there == files.keys() and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == record["sha256"]
            for name, record in files.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def limit(task: Task) -> None:
    if task.file_size:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (task.file_size, task.file_size))
    if task.address_space:
        have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (have + task.address_space,) * 2)


def child(task: Task, home: Path, pipe: int) -> int:
    """Run a script as its own program would; what it prints goes into the pipe."""
    for stream in (1, 2):
        os.dup2(pipe, stream)
    os.close(pipe)
    os.environ.update(task.env)
    os.chdir(home)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)
    script = SCRIPTS + task.argv[0]
    sys.argv = [script, *task.argv[1:]]
    reads = Reads(home)
    watch = Watch(task, str(home), reads)
    # what stages start as fresh processes is forked, too: their imports would take longer than all else
    multiprocessing.get_context = lambda method=None: multiprocessing.context.ForkContext()
    multiprocessing.forkserver.ensure_running = lambda: None
    multiprocessing.util.register_after_fork(watch, Watch.begin_anew)
    if task.watch_reads:
        sys.addaudithook(reads)
    limit(task)
    if task.do or task.count_sites:
        watch.begin()
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.setprofile(None)
    sys.settrace(None)
    watch.write_notes()
    sys.stdout.flush()
    return code


# ---- in the nursery ----


def wait_for(pid: int, kill_after: float) -> int:
    """Its exit code, or minus the signal that ended it. One that hangs says where, and is killed."""
    watched = os.pidfd_open(pid)
    if not select.select([watched], [], [], kill_after or PATIENCE)[0]:
        if not kill_after:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(1)
        os.kill(pid, signal.SIGKILL)
    os.close(watched)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def printed(pipe: int) -> str:
    """All that a child has printed. Not to the pipe's end, which a process that it left may hold open."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(pipe, PIPE):
            found += part
    os.close(pipe)
    return found.decode(errors="replace")


def draw_a_picture() -> None:
    """What matplotlib looks for and keeps, such as fonts, takes longer than the picture."""
    from lockstep.training import loss_plot

    with tempfile.TemporaryDirectory() as folder:  # home may be a small disk
        log = Path(folder) / "metrics.jsonl"
        log.write_text('{"step": 1, "loss": 1.0, "learning_rate": 1.0}\n{"step": 2, "eval_loss": 1.0}\n')
        loss_plot.draw(log, log.with_name("loss.png"), "run r")


def main() -> None:
    import importlib

    from support import warm  # noqa: F401 - what stages import

    home = Path(os.environ["LOCKSTEP_HOME"])
    for file in sorted((ROOT / "scripts/lockstep").rglob("*.py")):
        place = file.relative_to(ROOT / "scripts").with_suffix("")
        # Gradio takes seconds, and no stage that is killed here shows a page
        if file.stem not in {"__init__", "middleware"} and "chat" not in place.parts:
            importlib.import_module(".".join(place.parts))
    draw_a_picture()
    gc.freeze()  # or each child looks through all that was imported
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        started = time.monotonic()
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)  # no file: its size would be limited, too
        os.set_blocking(reading, False)
        pid = os.fork()
        if pid == 0:
            try:
                code = child(task, home, writing)
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)
        os.close(writing)
        code = wait_for(pid, task.kill_after)
        answer = {"code": code, "seconds": time.monotonic() - started, "printed": printed(reading)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


# ---- in the test ----


@dataclass
class Ended:
    """How a child ended: its exit code or minus its signal, what it printed, its sites, and bad reads."""

    code: int
    seconds: float
    printed: str
    sites: dict[str, int]
    reads: list[str]


class Nursery:
    """A process that forks stages, all of one home; what they see goes to files in `notes`."""

    def __init__(self, home: Path, notes: Path | None = None, **env: str) -> None:
        from support.programs import script_environment

        self.home, self.notes = home, notes or home
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=script_environment(home, OMP_NUM_THREADS="1", PYTHONPATH=f"{SCRIPTS}:{ROOT}/tests", **env), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *argv: str, **task: Any) -> Ended:
        """Fork a script with its arguments; `task` as in Task."""
        notes = self.notes / "notes.json"
        for old in self.notes.glob("notes.json*"):
            old.unlink()
        made = Task(list(argv), "" if "file_size" in task else str(notes), **task)  # a limit is the notes' limit, too
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(asdict(made)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        seen = [json.loads(file.read_text()) for file in self.notes.glob("notes.json*")]
        sites = {site: count for one in seen for site, count in one["sites"].items()}
        reads = [read for one in seen for read in one["reads"]]
        return Ended(**answer, sites=sites, reads=reads)

    def finish(self, *argv: str) -> None:
        """Fork a script that nothing happens to, and that must end well."""
        ended = self.run(*argv)
        assert ended.code == 0, ended.printed

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def restore(self, snapshot: Path) -> None:
        """models/ and outputs/ as they were."""
        for name in ("models", "outputs"):
            shutil.rmtree(self.home / name, ignore_errors=True)
            if (snapshot / name).exists():
                shutil.copytree(snapshot / name, self.home / name, copy_function=shutil.copy2)

    def keep(self, snapshot: Path) -> Path:
        """A copy of models/ and outputs/."""
        shutil.rmtree(snapshot, ignore_errors=True)
        snapshot.mkdir(parents=True)
        for name in ("models", "outputs"):
            if (self.home / name).exists():
                shutil.copytree(self.home / name, snapshot / name, copy_function=shutil.copy2)
        return snapshot


if __name__ == "__main__":
    main()
