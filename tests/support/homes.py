"""A home of its own for code that a test calls in its own process."""

from pathlib import Path

import pytest

from lockstep import paths


def settle(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let models/ and outputs/ be in a folder, as LOCKSTEP_HOME does for a program; returns it."""
    for name, place in (("HOME", folder), ("MODELS", folder / "models"), ("OUTPUTS", folder / "outputs")):
        monkeypatch.setattr(paths, name, place)
    return folder
