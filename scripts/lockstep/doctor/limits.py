"""What the system allows a program: encoding of texts, open files, sizes of files, shared memory, the server's port."""

import contextlib
import errno
import locale
import os
import re
import resource
import socket
import sys
from pathlib import Path

from lockstep.doctor.findings import Fact, Finding, Look

FEWEST_FILES, FEW_FILES = 1024, 4096  # open files: a server with its connections needs the first
LEAST_SHARED = 256 * 2**20  # bytes of /dev/shm
GIB = 2**30


def encoding() -> Look:
    """Whether texts and file names are UTF-8 here."""
    names = {locale.getencoding(), sys.getfilesystemencoding(), sys.stdout.encoding or "utf-8"}
    others = sorted(
        {name for name in names if name.replace("-", "").replace("_", "").lower() not in ("utf8", "utf8sig")}
    )
    variable = next((name for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "")
    value = f"{variable}={os.environ[variable]}" if variable else "no locale is set"
    if not others:
        return Look((Fact("locale", f"UTF-8 ({value})"),))
    what = (
        f"the locale is {', '.join(others)} ({value}), not UTF-8: Chinese and other texts are shown as \\u4f60, and "
        f"other programs may write files that are not UTF-8"
    )
    return Look(
        (Fact("locale", others[0]),), (Finding("locale_not_utf8", what, "run `export LC_ALL=C.UTF-8`", stops=False),)
    )


def files() -> Look:
    """How many files may be open, and how large files and processes may grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    findings = []
    most = "any number of" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < FEWEST_FILES:
        what = f'only {soft} files may be open at once: server and data loading end with "Too many open files"'
        raised = hard == resource.RLIM_INFINITY or hard >= FEW_FILES
        cure = f"run `ulimit -n {FEW_FILES}`" + ("" if raised else ", for which root must raise the hard limit")
        findings.append(Finding("file_limit", what, cure))
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        what = f"a file may grow to {size / GIB:.2f} GiB (ulimit -f): weights that are larger cannot be written"
        findings.append(Finding("file_size_limit", what, "run `ulimit -f unlimited`"))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY and space < 64 * GIB:
        what = (
            f"a process may take {space / GIB:.1f} GiB of addresses (ulimit -v): torch and vLLM reserve more than "
            f"they use"
        )
        findings.append(Finding("address_limit", what, "run `ulimit -v unlimited`"))
    return Look((Fact("open files", f"{most} (ulimit -n)"),), tuple(findings))


def shared_memory(folder: Path = Path("/dev/shm")) -> Look:
    """Whether processes can share tensors."""
    if not folder.is_dir():
        return Look()
    usage = os.statvfs(folder)
    free = usage.f_bavail * usage.f_frsize
    if free >= LEAST_SHARED:
        return Look()
    what = (
        f"{free / 2**20:.0f} MiB are free in {folder}: servers on several GPUs and loading processes end with a bus "
        f"error"
    )
    cure = "start the container with --shm-size 8g, or remove what was left there"
    return Look((), (Finding("shm_small", what, cure, stops=False),))


def port(host: str, number: int, ours: str = "", proc: Path = Path("/proc")) -> Look:
    """Whether the server's port is free, and who holds it.

    Args:
        ours: which of our servers listens there, and how it is stopped; empty where none does.
    """
    name = f"port {number}"
    problem = _bound(host, number)
    if problem is None:
        return Look((Fact(name, "free"),))
    if problem == errno.EACCES:
        what = f"{name} needs the rights of root: `make serve` does not start"
        return Look((Fact(name, "not allowed"),), (Finding("port_refused", what, "set --serve.port above 1023"),))
    if problem == errno.EADDRNOTAVAIL:
        what = f"{host} is no address of this machine: `make serve` does not start"
        return Look((Fact(name, "no such address"),), (Finding("host_unknown", what, "set --serve.host 127.0.0.1"),))
    if ours:
        return Look((Fact(name, ours),))
    holder = holder_of(number, proc)
    cure = f"end it, or set --serve.port {_free_port(host, number)}"
    what = f"{name} is held by {holder or 'another program'}, which is no server of ours: `make serve` does not start"
    return Look((Fact(name, f"held by {holder or 'another program'}"),), (Finding("port_taken", what, cure),))


def _bound(host: str, number: int) -> int | None:
    """Why a port cannot be listened at, as an error's number; None where it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
            probe.listen(1)
        except OSError as error:
            return error.errno or errno.EADDRINUSE
    return None


def _free_port(host: str, number: int) -> int:
    return next((n for n in range(number + 1, min(number + 100, 65536)) if _bound(host, n) is None), number + 1)


def holder_of(number: int, proc: Path = Path("/proc")) -> str:
    """The program that listens at a port; empty where the system does not tell."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == number:
                inodes.add(f"socket:[{words[9]}]")
    for folder in proc.iterdir() if inodes else ():
        if not re.fullmatch(r"\d+", folder.name):
            continue
        if inodes.intersection(open_files(folder)):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                return f"{' '.join(words)[:60].strip()} (process {folder.name})"
    return ""


def open_files(process: Path) -> list[str]:
    """What a process has open, by its folder in /proc; empty where that is another user's."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed since
                names.append(str(link.readlink()))
    return names
