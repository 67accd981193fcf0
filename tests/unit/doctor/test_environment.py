"""Sick environments, as folders of packages: what pip would have written there."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT

from lockstep.doctor import environment

LOCKED = environment.read_lock(ROOT / "requirements-cpu.lock", sys.version_info[:2])


def install(place: Path, name: str, version: str, files: dict[str, str] | None = None) -> None:
    """Leave behind what pip does of a package: its metadata, its files, and their list."""
    folder = place / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, text in (files or {}).items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text)
    listed = [*(files or {}), f"{folder.name}/METADATA"]
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in listed))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """All packages of the lock, in the locked versions."""
    for name, versions in LOCKED.items():
        install(tmp_path, name, min(versions), {f"{name.replace('-', '_')}/__init__.py": ""})
    return tmp_path


def codes(place: Path, *, cuda: bool = False) -> list[str]:
    return [finding.code for finding in environment.packages(cuda, [str(place)]).findings]


def remove(place: Path, name: str) -> None:
    (folder,) = place.glob(f"{name.replace('-', '_')}-*.dist-info")
    folder.rename(place / "removed")


def test_the_locked_packages_are_well(packages: Path) -> None:
    look = environment.packages(False, [str(packages)])
    assert look.findings == ()
    assert "torch 2.13.0+cpu" in look.facts[0].value and f"all {len(LOCKED)}" in look.facts[0].value


def test_packages_for_cuda_beside_torch_for_the_cpu(packages: Path) -> None:
    install(packages, "torchvision", "0.28.0")
    install(packages, "torchaudio", "2.11.0")
    (finding,) = environment.packages(False, [str(packages)]).findings
    assert finding.code == "torchvision_build" and finding.stops
    assert "torchvision 0.28.0, torchaudio 2.11.0 is a CUDA build beside the CPU build torch 2.13.0+cpu" in finding.what
    assert "uninstall -y torchvision torchaudio" in finding.next


def test_torch_for_the_cpu_on_a_machine_with_a_gpu(packages: Path) -> None:
    assert "torch_build" in codes(packages, cuda=True)


def test_torch_for_cuda_without_a_driver(packages: Path) -> None:
    remove(packages, "torch")
    install(packages, "torch", "2.13.0")
    install(packages, "nvidia-cublas", "13.1.1.3")
    assert codes(packages) == ["torch_build"]


def test_a_missing_package_and_another_version_are_named(packages: Path) -> None:
    remove(packages, "peft")
    (finding,) = environment.packages(False, [str(packages)]).findings
    assert finding.code == "package_missing" and "(peft)" in finding.what
    install(packages, "peft", "0.1.0")
    (finding,) = environment.packages(False, [str(packages)]).findings
    assert finding.code == "package_version" and "peft 0.1.0 (locked: 0.21.2)" in finding.what


def test_half_a_package_is_told_from_its_own_list_of_files(packages: Path) -> None:
    (packages / "peft/__init__.py").unlink()
    (finding,) = environment.packages(False, [str(packages)]).findings
    assert finding.code == "half_environment" and "peft: 1 files" in finding.what


@pytest.mark.parametrize("metadata", [None, b"", b"\xff\xfe\x00", b"Name: peft\n"])
def test_a_package_whose_metadata_is_half_there_is_missing(metadata: bytes | None, packages: Path) -> None:
    (folder,) = packages.glob("peft-*.dist-info")
    (folder / "METADATA").unlink()
    if metadata is not None:
        (folder / "METADATA").write_bytes(metadata)
    assert codes(packages) == ["package_missing"]


def test_what_a_killed_pip_leaves_is_seen(packages: Path) -> None:
    (packages / "~orch").mkdir()
    assert codes(packages) == ["half_environment"]


def test_no_packages_at_all_is_one_finding(tmp_path: Path) -> None:
    assert codes(tmp_path) == ["package_missing"]


def test_an_environment_whose_installation_broke_off(tmp_path: Path) -> None:
    assert environment.venv(tmp_path).findings == ()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    assert [f.code for f in environment.venv(tmp_path).findings] == ["half_environment"]
    (tmp_path / ".venv/cpu.stamp").touch()
    assert [f.code for f in environment.venv(tmp_path).findings] == ["other_python"]
    (tmp_path / ".venv/bin/python").unlink()
    (tmp_path / ".venv/bin/python").symlink_to(tmp_path / "gone")
    assert [f.code for f in environment.venv(tmp_path).findings] == ["half_environment"]


def test_markers_of_a_lock_choose_by_python(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text("a==1 ; python_full_version < '3.12'\na==2 ; python_full_version == '3.12.*'\nB_c==3  # remark\n")
    assert environment.read_lock(lock, (3, 11)) == {"a": {"1"}}
    lock.write_text("a==1 ; python_full_version < '3.12'\na==2 ; python_full_version == '3.12.*'\nB_c==3\n")
    assert environment.read_lock(lock, (3, 12)) == {"a": {"2"}, "b-c": {"3"}}
