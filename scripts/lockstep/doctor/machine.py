"""Disk, memory, cores and GPUs of this machine, as far as files and small programs tell; needs no package."""

import errno
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lockstep import paths
from lockstep.doctor.findings import Fact, Finding, Look

GIB = 2**30
LEAST_DISK, LITTLE_DISK = GIB, 10 * GIB  # free bytes below which nothing fits, and below which larger models do not
LEAST_TEMPORARY = 2**28  # free bytes for temporary files: compiled kernels, sockets, what packages unpack
LEAST_INODES = 1000
LEAST_MEMORY, LITTLE_MEMORY = (
    2 * GIB,
    5 * GIB,
)  # available bytes: nothing serves with less; the demo's server needs more
TRIAL_BYTES = 4 * 2**20  # that are really written, as quotas and read-only disks show only so
CPU_FLAGS = {
    "AMX": ("amx_bf16",), "AVX-512 BF16": ("avx512_bf16",), "FP16": ("avx512_fp16", "amx_fp16", "fphp"),
    "BF16": ("bf16",), "AVX-512": ("avx512f",), "AVX2": ("avx2",), "NEON": ("asimd",),
}  # fmt: skip
OF_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
DRIVERS = {12: 525, 13: 580}  # CUDA's major version → the oldest driver that runs it


def disk(folders: tuple[Path, ...] = (paths.OUTPUTS, paths.MODELS), needed: int = LEAST_DISK) -> Look:
    """Free space where outputs and models are, each disk once, and for temporary files.

    Args:
        needed: bytes that the next stages of the run write.
    """
    facts, findings = [], []
    seen: set[int] = set()
    temporary = Path(tempfile.gettempdir())
    for folder in (*folders, temporary):
        place = _existing(folder)
        if place.stat().st_dev in seen:
            continue
        seen.add(place.stat().st_dev)
        usage = os.statvfs(place)
        needed = LEAST_TEMPORARY if folder is temporary else needed
        free, name = usage.f_bavail * usage.f_frsize, paths.label(folder)
        facts.append(Fact(f"disk of {name}", f"{_gib(free)} free"))
        move = (
            "remove what is not needed, such as the checkpoints of finished runs, or set LOCKSTEP_HOME to a larger disk"
        )
        reason = "" if free < needed else _refused(place)
        if free < needed:
            what = f"{_gib(free)} are free for {name}, and {_gib(needed)} are needed: a stage ends with a full disk"
            findings.append(Finding("disk_full", what, move))
        elif reason:
            what = f"nothing can be written into {name} ({reason}): every stage ends with that"
            findings.append(Finding("disk_full" if "full" in reason else "disk_read_only", what, move))
        elif usage.f_files and usage.f_favail < LEAST_INODES:
            what = f"the disk of {name} has room for {usage.f_favail} more files: a stage ends with a full disk"
            findings.append(Finding("disk_full", what, move))
        elif free < LITTLE_DISK and folder is not temporary:
            what = f"{_gib(free)} are free for {name}: enough for small models, and not for one of 7 billion parameters"
            findings.append(Finding("disk_little", what, move, stops=False))
    return Look(tuple(facts), tuple(findings))


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def _refused(folder: Path) -> str:
    """Why some bytes cannot be written into a folder; empty where they can."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(b"\0" * TRIAL_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return "the disk or a quota is full" if full else str(error.strerror)
    return ""


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"


def memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup"), needed: int = 0) -> Look:
    """Total and available memory, within the limits of a container.

    Args:
        needed: bytes that serving the run takes, where that is known.
    """
    lines = _text(proc / "meminfo").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) > 1}
    if "MemTotal" not in sizes:
        return Look()
    total, available = sizes["MemTotal"], sizes.get("MemAvailable", sizes.get("MemFree", 0))
    limit, used = _cgroup_memory(proc, cgroups)
    container = limit is not None and limit < total
    if limit is not None and container:
        total, available = limit, min(available, max(0, limit - used))
    where = " (the limit of this container)" if container else ""
    fact = Fact("memory", f"{_gib(total)}{where}, {_gib(available)} available")
    cure = "stop other programs, or give the container more memory" if container else "stop other programs"
    if available < max(LEAST_MEMORY, needed):
        what = (
            f"{_gib(available)} of memory{where} are available, and {_gib(max(LEAST_MEMORY, needed))} are needed: "
            f"a stage is killed in the middle, or the server does not start"
        )
        return Look((fact,), (Finding("memory_low", what, cure),))
    if available < LITTLE_MEMORY:
        what = f"{_gib(available)} of memory{where} are available: vLLM on a CPU needs about 5 GiB beside the weights"
        return Look((fact,), (Finding("memory_little", what, cure, stops=False),))
    return Look((fact,))


def _cgroup_memory(proc: Path, cgroups: Path) -> tuple[int | None, int]:
    """The smallest limit on this process's memory, and what counts towards it and cannot be given back, in bytes."""
    limits: list[tuple[int, int]] = []
    for folder in _cgroup_folders(proc, cgroups, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        cache = re.search(r"^(?:total_)?inactive_file (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
        if limit is not None:
            limits.append((limit, max(0, used - (int(cache[1]) if cache else 0))))
    return min(limits) if limits else (None, 0)


def _cgroup_folders(proc: Path, cgroups: Path, controller: str) -> list[Path]:
    """The cgroups of this process, from its own up to the root."""
    folders = []
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        place = root / path.strip("/")
        while place != root.parent:
            folders.append(place)
            place = place.parent
    return folders


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdigit() and int(text) < 2**60 else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cores(cpuinfo: Path = Path("/proc/cpuinfo"), cgroups: Path = Path("/sys/fs/cgroup")) -> Look:
    """How many cores there are for this process, and which of their instructions matter here."""
    flags = cpu_flags(cpuinfo)
    count = len(os.sched_getaffinity(0))
    named = [name for name, alternatives in CPU_FLAGS.items() if flags & set(alternatives)]
    fact = Fact("cores", f"{count}; {', '.join(named) or 'no instructions that matter here are known'}")
    findings = []
    if flags and not flags & set(OF_BFLOAT16):
        what = (
            "the processor has no bfloat16 instructions: train.dtype auto computes in float32 on it, with twice the "
            "memory and some of the speed"
        )
        cure = "leave train.dtype and serve.dtype at auto, and expect demos to take two to four times as long"
        findings.append(Finding("no_bfloat16", what, cure, stops=False))
    if flags and not flags & {"avx2", "avx512f", "asimd"}:
        what = "the processor has no AVX2: vLLM's CPU build ends with an illegal instruction"
        findings.append(Finding("no_avx2", what, "serve on another machine; training works, slowly"))
    quota = _cpu_quota(cgroups)
    if quota and quota < count * 0.9:
        what = f"this container gets {quota:.1f} cores' time and sees {count} cores: threads wait for each other"
        cure = f"set OMP_NUM_THREADS={max(1, round(quota))}, or start the container with --cpuset-cpus"
        findings.append(Finding("cpu_quota", what, cure, stops=False))
    return Look((fact,), tuple(findings))


def cpu_flags(cpuinfo: Path) -> set[str]:
    """The instruction sets of the first core; empty where the file does not tell."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _text(cpuinfo), re.MULTILINE)
    return set(match[1].split()) if match else set()


def _cpu_quota(cgroups: Path) -> float | None:
    quotas = []
    for folder in _cgroup_folders(Path("/proc"), cgroups, "cpu"):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period:
            quotas.append(quota / period)
    return min(quotas) if quotas else None


def gpus(cuda_major: int | None, devices: Path = Path("/dev")) -> tuple[bool, Look]:
    """Whether an NVIDIA driver answers, and what it says.

    Args:
        cuda_major: CUDA's version that the locked torch brings.
        devices: where the driver's devices are.
    """
    has_device = (devices / "nvidia0").exists() or (devices / "dxg").exists()
    program = shutil.which("nvidia-smi")
    if not program:
        if not has_device:
            return False, Look((Fact("GPU", "none; everything runs on the CPU"),))
        what = "there is an NVIDIA device and no nvidia-smi: the Makefile takes this machine for one without a GPU"
        cure = "install the driver's tools, or start the container with --gpus all"
        return False, Look((Fact("GPU", "no nvidia-smi"),), (Finding("driver_broken", what, cure),))
    query = [program, "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=8, check=False)
        words, failed = answer.stdout, answer.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        words, failed = str(error), True
    rows = [[cell.strip() for cell in line.split(",")] for line in words.splitlines() if line.count(",") >= 3]
    if failed or not rows:
        reason = " ".join(words.split())[:120] or "no answer"
        what = f"nvidia-smi fails ({reason}): torch finds no GPU, and everything runs on the CPU"
        cure = "reboot after an upgrade of the driver, or install it anew"
        return False, Look((Fact("GPU", "the driver does not answer"),), (Finding("driver_broken", what, cure),))
    name, driver, size, capability = rows[0][:4]
    fact = Fact("GPU", f"{len(rows)} × {name}, {size} MiB, compute capability {capability}, driver {driver}")
    oldest = DRIVERS.get(cuda_major or 0)
    major = int(driver.split(".")[0]) if driver.split(".")[0].isdigit() else None
    if oldest and major and major < oldest:
        what = f"driver {driver} is too old for the CUDA {cuda_major} of the locked torch: no kernel starts on the GPU"
        return True, Look((fact,), (Finding("driver_old", what, f"install driver {oldest} or newer"),))
    if re.fullmatch(r"[1-7]\.\d", capability):
        what = f"compute capability {capability} has no bfloat16: train.dtype auto computes in float16 there"
        cure = "leave train.dtype and serve.dtype at auto"
        return True, Look((fact,), (Finding("no_bfloat16", what, cure, stops=False),))
    return True, Look((fact,))


def cuda_of_lock(root: Path = paths.ROOT) -> int | None:
    """The major version of CUDA in the lock."""
    match = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)", _text(root / "requirements.lock"), re.MULTILINE)
    return int(match[1]) if match else None
