"""Whether torch and bitsandbytes really compute here: `kernel_trial` in a process of its own, and what it tells."""

import json
import signal
import subprocess
import sys
from typing import Any

from lockstep import paths
from lockstep.doctor.findings import Fact, Finding, Look

LONGEST = 40  # seconds; it takes three on an idle machine
MOST_ERROR = {"float32": 1e-4, "bfloat16": 2e-2}  # of a product's largest value; results are rounded to the dtype
MOST_NF4_ERROR = 1e-2
REINSTALL = "run `rm -r .venv && make setup`"


class Trial:
    """The trial while it runs, so that other looks can be taken meanwhile."""

    def __init__(self, python: str = sys.executable) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "lockstep.doctor.kernel_trial"],
            cwd=paths.SCRIPTS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> Look:
        """What it gave, once it has ended."""
        try:
            out, errors = self.process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            what = (
                f"torch and bitsandbytes had computed nothing after {LONGEST} s: the machine is very busy, or they hang"
            )
            return Look((), (Finding("kernel_slow", what, "run `make doctor` again once it is idle", stops=False),))
        return told(self.process.returncode, out, errors)


def told(code: int, out: str, errors: str) -> Look:
    """What an ended trial means."""
    if code < 0:
        name = signal.Signals(-code).name
        what = f"torch ends Python with {name} when it computes: it is built for another processor, or half installed"
        return Look((), (Finding("kernel_crash", what, REINSTALL),))
    lines = [line for line in out.splitlines() if line.startswith("{")]  # libraries may print, too
    if code or not lines:
        last = (errors.strip().splitlines() or ["no answer"])[-1][:200]
        return Look((), (Finding("kernel_fails", f"torch does not load or compute here ({last})", REINSTALL),))
    result: dict[str, Any] = json.loads(lines[-1])
    findings = []
    wrong = [name for name, error in result["products"].items() if not error <= MOST_ERROR[name]]
    if wrong:
        what = (
            f"products of matrices in {' and '.join(wrong)} are wrong on the {result['device']} (off by "
            f"{max(result['products'].values()):.0%}): training and serving give wrong numbers"
        )
        cure = "set train.dtype and serve.dtype to float32" if wrong == ["bfloat16"] else REINSTALL
        findings.append(Finding("kernel_wrong", what, cure))
    if "nf4_error" in result:
        what = f"bitsandbytes does not quantize here ({result['nf4_error']}): method qlora ends with that"
        findings.append(Finding("nf4_fails", what, f"{REINSTALL}, or train with --method lora"))
    elif not result["nf4"] <= MOST_NF4_ERROR:
        what = (
            f"bitsandbytes gives back wrong NF4 values (off by {result['nf4']:.0%}): method qlora trains on wrong "
            f"weights"
        )
        findings.append(Finding("nf4_wrong", what, f"{REINSTALL}, or train with --method lora"))
    errors_shown = ", ".join(f"{name} within {error:.0e}" for name, error in result["products"].items())
    nf4 = f"; NF4 within {result['nf4']:.0e}" if "nf4" in result else ""
    return Look((Fact("kernels", f"{result['device']}: {errors_shown}{nf4}"),), tuple(findings))
