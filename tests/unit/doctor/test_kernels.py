"""Kernels that really run, and processes that die over them."""

import json
from pathlib import Path

import pytest

from lockstep.doctor import kernel_trial, kernels


def test_this_machine_computes_and_quantizes_rightly() -> None:
    result = kernel_trial.main()
    assert "nf4_error" not in result
    assert kernels.told(0, json.dumps(result), "").findings == ()
    assert 0 < result["products"]["bfloat16"] < kernels.MOST_ERROR["bfloat16"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"products": {"float32": 0.2, "bfloat16": 0.001}}, "kernel_wrong"),
        ({"products": {"float32": 1e-7, "bfloat16": float("nan")}}, "kernel_wrong"),
        ({"nf4": 0.3}, "nf4_wrong"),
        ({"nf4_error": "RuntimeError: no kernel image"}, "nf4_fails"),
    ],
)
def test_wrong_numbers_are_a_finding(change: dict[str, object], code: str) -> None:
    result = {"device": "cpu", "products": {"float32": 1e-7, "bfloat16": 0.003}, "nf4": 1e-7}
    (finding,) = kernels.told(0, json.dumps(result | change), "").findings
    assert finding.code == code and finding.stops


def test_a_table_of_other_values_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = list(kernel_trial.NF4)
    other[3] += 0.05
    monkeypatch.setattr(kernel_trial, "NF4", tuple(other))
    assert kernel_trial.nf4_round_trip("cpu") > kernels.MOST_NF4_ERROR


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("kill -ILL $$", "kernel_crash"),
        ("echo 'ImportError: libtorch_cpu.so: cannot open shared object file' >&2; exit 1", "kernel_fails"),
    ],
)
def test_a_python_that_dies_over_torch_is_told(body: str, code: str, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    (finding,) = kernels.Trial(str(program)).result().findings
    assert finding.code == code and finding.stops
