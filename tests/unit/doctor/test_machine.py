"""Sick machines: disks that are really full, limits of containers, processors and drivers as their files tell them."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.programs import ROOT

from lockstep.doctor import machine
from lockstep.doctor.machine import GIB

FLAGS = "processor\t: 0\nflags\t\t: fpu sse2 avx2 {}\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with two MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    (small_disk / "all").write_bytes(b"\0" * (2**21 - 4096))
    (finding,) = machine.disk((small_disk,)).findings
    assert finding.code == "disk_full" and finding.stops and "0.0 GiB are free" in finding.what


def test_a_disk_that_refuses_what_it_seems_to_have_room_for(small_disk: Path) -> None:
    (finding,) = machine.disk((small_disk,), needed=0).findings
    assert finding.code == "disk_full" and "the disk or a quota is full" in finding.what


def test_a_quota_is_seen_by_writing(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from lockstep.doctor import machine;"
        f"print([f.code for f in machine.disk((Path({str(tmp_path)!r}),), needed=0).findings])"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))

    answer = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")}, capture_output=True,
        text=True, check=True, preexec_fn=limit,
    )  # fmt: skip
    assert answer.stdout == "['disk_full']\n"


def test_a_disk_with_room_is_named_once_and_nothing_stays_on_it(tmp_path: Path) -> None:
    look = machine.disk((tmp_path / "outputs/run", tmp_path / "models"), needed=1)
    assert len(look.facts) == 1 and not [finding for finding in look.findings if finding.stops]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx512f", ["no_bfloat16"]), ("avx512f avx512_bf16", []), ("amx_bf16 amx_tile", [])],
)
def test_a_processor_without_bfloat16(flags: str, expected: list[str], tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(FLAGS.format(flags))
    findings = machine.cores(file, tmp_path).findings
    assert [finding.code for finding in findings] == expected
    assert not any(finding.stops for finding in findings)  # it computes in float32


def test_an_old_processor_and_an_arm_one(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("flags\t\t: fpu sse2\n")
    assert {finding.code for finding in machine.cores(file, tmp_path).findings} == {"no_bfloat16", "no_avx2"}
    file.write_text("Features\t: fp asimd bf16 fphp\n")
    assert machine.cores(file, tmp_path).findings == ()


def container(folder: Path, files: dict[str, str], total: int, available: int) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup of a process in the cgroup /a/b."""
    proc, groups = folder / "proc", folder / "groups"
    (proc / "self").mkdir(parents=True)
    (groups / "a/b").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {total >> 10} kB\nMemAvailable: {available >> 10} kB\n")
    (proc / "self/cgroup").write_text("0::/a/b\n")
    for name, text in files.items():
        (groups / name).write_text(text)
    return proc, groups


def test_the_limit_of_a_container_counts_and_what_it_can_give_back_does_not(tmp_path: Path) -> None:
    files = {
        "a/memory.max": f"{4 * GIB}\n", "a/memory.current": f"{3 * GIB}\n", "a/memory.stat": "inactive_file 0\n",
        "a/b/memory.max": "max\n",
    }  # fmt: skip
    look = machine.memory(*container(tmp_path / "1", files, 64 * GIB, 60 * GIB))
    assert [f.code for f in look.findings] == ["memory_low"]
    assert look.facts[0].value == "4.0 GiB (the limit of this container), 1.0 GiB available"
    cached = files | {"a/memory.stat": f"anon 1\ninactive_file {5 * GIB // 2}\n"}
    look = machine.memory(*container(tmp_path / "2", cached, 64 * GIB, 60 * GIB))
    assert [f.code for f in look.findings] == ["memory_little"]
    assert machine.memory(*container(tmp_path / "3", {}, 64 * GIB, 60 * GIB)).findings == ()
    assert [f.code for f in machine.memory(*container(tmp_path / "4", {}, 64 * GIB, 6 * GIB), 8 * GIB).findings] == [
        "memory_low"
    ]


def smi(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in place of nvidia-smi: there is no GPU here."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_a_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, "echo 'NVIDIA H200, 580.95.05, 143771, 9.0'", monkeypatch)
    assert machine.gpus(13)[0] and machine.gpus(13)[1].findings == ()
    smi(tmp_path, "echo 'Tesla T4, 535.104.05, 15360, 7.5'", monkeypatch)
    assert [f.code for f in machine.gpus(13)[1].findings] == ["driver_old"]
    assert [f.code for f in machine.gpus(12)[1].findings] == ["no_bfloat16"]
    smi(tmp_path, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", monkeypatch)
    cuda, look = machine.gpus(13)
    assert not cuda and [f.code for f in look.findings] == ["driver_broken"]
    assert "version mismatch" in look.findings[0].what


def test_a_device_without_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not machine.gpus(13, tmp_path)[1].findings
    (tmp_path / "nvidia0").touch()
    assert [f.code for f in machine.gpus(13, tmp_path)[1].findings] == ["driver_broken"]


def test_the_locked_cuda_is_known() -> None:
    assert machine.cuda_of_lock() in machine.DRIVERS
