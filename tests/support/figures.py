"""How many cases of each promise were tried, and how many held: counted while the tests run.

A test file says `pytestmark = pytest.mark.promise("…")`. Each of its tests is a case; one that tries
several says so with `record_property("cases", N)`. With LOCKSTEP_FIGURES=FILE the counts are added
to that JSON file, from which write_reliability.py makes docs/reliability.md.
"""

import datetime
import json
import os
from pathlib import Path
from typing import Any

import filelock
import pytest

Count = dict[str, int]  # done, of


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    marker = item.get_closest_marker("promise")
    if marker and not report.skipped and (report.when == "call" or report.failed):
        cases = int(dict(item.user_properties).get("cases", 1))
        if name := os.environ.get("LOCKSTEP_FIGURES"):
            _add(Path(name), marker.args[0], item.nodeid, {"done": 0 if report.failed else cases, "of": cases})
    return report


def _add(file: Path, promise: str, test: str, count: Count) -> None:
    """Put a test's count into the file, at once: several processes run the tests, and one may be stopped."""
    with filelock.FileLock(f"{file}.lock"):
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"promises": {}}
        found["promises"].setdefault(promise, {})[test] = count  # one that ran again counts once
        _write(file, found)


def _write(file: Path, found: dict[str, Any]) -> None:
    found |= {"date": datetime.date.today().isoformat(), "cores": os.cpu_count()}
    file.write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
