"""What killed stages and servers left behind: locks, half-made folders, notes, processes and shared memory."""

import contextlib
import fcntl
import os
import re
import socket
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.doctor import limits
from lockstep.doctor.findings import Fact, Finding, Look

SHARED = re.compile(r"(sem\.)?(psm_|torch_|vllm|VLLM|nccl-|shm_broadcast|__KMP_REGISTERED_LIB_)\w*")
GOALS = {"data": "data", "adapter": "train", "merged": "merge", "base": "serve-lora", "eval": "evaluate"}
SERVERS = (filenames.SERVE, filenames.SERVE_BASE)
SHOWN = 3


def look(homes: tuple[Path, ...] = (paths.OUTPUTS, paths.MODELS), shared: Path = Path("/dev/shm")) -> Look:
    """All of it, of all runs and models."""
    findings: list[Finding] = []
    folders = [home for home in homes if home.is_dir()]
    folders += [run for home in folders for run in sorted(home.iterdir()) if run.is_dir() and home != paths.MODELS]
    for folder in folders:
        findings += _locks(folder)
        findings += _half_made(folder)
        for name in SERVERS:
            findings += _dead_server(folder / name)
    findings += _segments(shared)
    count = len(findings)
    return Look((Fact("leftovers", f"{count} of killed stages and servers" if count else "none"),), tuple(findings))


def _locks(folder: Path) -> list[Finding]:
    """Locks that are held by who cannot finish, and locks of stages that were killed."""
    findings = []
    for lock in sorted(folder.glob(".*.lock")):
        target = folder / lock.name[1:].removesuffix(".lock")
        process, host = _holder(lock)
        state = _state(process) if process and host in ("", socket.gethostname()) else "elsewhere"
        name, work = paths.label(lock), paths.label(target)
        if _is_held(lock):
            if state == "stopped":
                what = (
                    f"{work} is locked by process {process}, which is stopped (Ctrl-Z): stages that write it wait for "
                    f"ever"
                )
                findings.append(
                    Finding("stale_lock", what, f"run `kill -CONT {process}` to let it go on, or `kill {process}`")
                )
            elif process and state == "gone":
                what = f"{name} is held, and process {process} that it names is gone: another process has it open"
                findings.append(Finding("stale_lock", what, f"find it with `fuser {name}`, and end it"))
        elif process and state in ("gone", "elsewhere") and not _is_complete(target):
            where = f" on {host}" if state == "elsewhere" else ""
            what = (
                f"{name} is left by process {process}{where}, which was killed while it wrote {work}: it blocks nothing"
            )
            findings.append(Finding("stale_lock", what, _again(target), stops=False))
    return findings


def _holder(lock: Path) -> tuple[int, str]:
    """The process and the host that a lock names."""
    try:
        match = re.match(r"process (\d+)(?: on (\S+))?", lock.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return 0, ""
    return (int(match[1]), match[2] or "") if match else (0, "")


def _is_held(lock: Path) -> bool:
    with contextlib.suppress(OSError):
        descriptor = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _state(process: int) -> str:
    """Whether a process runs, is stopped, or gone."""
    try:
        letter = (
            Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
        )
    except (OSError, IndexError):
        return "gone"
    return {"T": "stopped", "t": "stopped", "Z": "gone", "X": "gone"}.get(letter, "runs")


def _is_complete(folder: Path) -> bool:
    """Whether a stage's folder is there; what holds no manifest is no stage's."""
    return (folder / filenames.MANIFEST).is_file() or folder.name == "hashes"


def _again(target: Path) -> str:
    """The command that makes a folder again, and clears what a killed try left."""
    if target.parent == paths.MODELS:
        return f"run `make download` for {target.name} again"
    goal = GOALS.get(target.name)
    return f"run `make {goal}` for the run {target.parent.name} again" if goal else f"remove {paths.label(target)}"


def _half_made(folder: Path) -> list[Finding]:
    """Temporary folders of stages that no longer run."""
    findings = []
    for kind in ("partial", "replaced"):
        for work in sorted(folder.glob(f".*.{kind}")):
            target = folder / work.name[1:].removesuffix(f".{kind}")
            lock = folder / f".{target.name}.lock"
            if not work.is_dir() or (lock.exists() and _is_held(lock)):
                continue
            size = sum(map(_bytes, work.rglob("*")))
            what = (
                f"{paths.label(work)} is half made, {size / 2**20:.0f} MiB: a stage was killed, and the disk is not "
                f"given back"
            )
            stops = kind == "replaced" and not target.exists()
            if stops:
                what = f"{paths.label(target)} was killed while it was replaced: what was there stands in {work.name}"
            findings.append(Finding("half_made", what, _again(target), stops=stops))
    return findings


def _dead_server(folder: Path) -> list[Finding]:
    """A note of a server whose process is gone, and processes that it left."""
    note = folder / filenames.SERVER_NOTE
    try:
        match = re.search(r'"pid":\s*(\d+)', note.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        match = None
    supervisor = int(match[1]) if match else 0
    # the number may be another program's by now; ours has the package's name in its command
    alive = bool(supervisor) and _state(supervisor) != "gone" and "lockstep" in _command(supervisor)
    if alive:
        return []
    orphans = _marked(folder)
    stop = f"run `make stop ARGS='--run {folder.parent.name}'`"
    if orphans:
        size = sum(_resident(process) for process in orphans) / 2**30
        what = (
            f"{len(orphans)} processes of a killed server of {paths.label(folder.parent)} still run and hold "
            f"{size:.1f} GiB: the next server may lack memory"
        )
        return [Finding("orphan_server", what, stop)]
    if match:
        what = (
            f"{paths.label(note)} tells of a server whose process {supervisor} is gone: it was killed and serves "
            f"nothing"
        )
        return [Finding("dead_server", what, f"{stop}, or serve again", stops=False)]
    return []


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _resident(process: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _marked(folder: Path) -> list[int]:
    """Processes whose environment names the rules of a server's folder, as all of its processes do."""
    mark = os.fsencode(f"={folder / filenames.RULES}")
    marked = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if mark in (place / "environ").read_bytes() and _state(int(place.name)) != "gone":
                marked.append(int(place.name))
    return marked


def _segments(shared: Path) -> list[Finding]:
    """Shared memory of ours that no process has mapped."""
    if not shared.is_dir():
        return []
    own = [entry for entry in shared.iterdir() if SHARED.fullmatch(entry.name) and _is_own(entry)]
    used = _mapped(shared) if own else set()
    left = sorted((entry for entry in own if str(entry) not in used and _held(entry)), key=lambda e: e.name)
    size = sum(map(_held, left))
    if size < 2**20:
        return []
    names = " ".join(str(entry) for entry in left[:SHOWN])
    what = f"{len(left)} segments of shared memory are left by killed servers, {size / 2**20:.0f} MiB of memory"
    return [
        Finding(
            "shared_memory_left", what, f"run `rm {names}`" + (" and so on" if len(left) > SHOWN else ""), stops=False
        )
    ]


def _bytes(file: Path) -> int:
    """The size of a file; 0 for what is none, or gone meanwhile."""
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0


def _held(segment: Path) -> int:
    """The bytes of memory that a segment takes; its pages come as they are written."""
    try:
        return segment.stat().st_blocks * 512
    except OSError:
        return 0


def _is_own(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_uid == os.getuid()
    except OSError:
        return False


def _mapped(shared: Path) -> set[str]:
    names: set[str] = set()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for line in (place / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
                if str(shared) in line:
                    names.add(line[line.index(str(shared)) :].removesuffix(" (deleted)"))
        names |= set(limits.open_files(place))
    return names
