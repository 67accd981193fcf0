"""How many cases of each promise were tried, and how many held: counted while the tests run.

A test file says `pytestmark = pytest.mark.promise("…")`. Each of its tests is a case; one that tries
several says so with `record_property("cases", N)`. With LOCKSTEP_FIGURES=FILE the counts are added
to that JSON file, from which write_reliability.py makes docs/reliability.md.
"""

import datetime
import json
import os
from pathlib import Path

import filelock
import pytest

Counts = dict[str, dict[str, dict[str, int]]]  # promise → test → done, of

counts: Counts = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    marker = item.get_closest_marker("promise")
    if marker and not report.skipped and (report.when == "call" or report.failed):
        cases = int(dict(item.user_properties).get("cases", 1))
        tests = counts.setdefault(marker.args[0], {})
        tests[item.nodeid] = {"done": 0 if report.failed else cases, "of": cases}
    return report


def pytest_sessionfinish() -> None:
    name = os.environ.get("LOCKSTEP_FIGURES")
    if not name or not counts:
        return
    file = Path(name)
    with filelock.FileLock(f"{file}.lock"):  # several processes run the tests
        _add(file)


def _add(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"promises": {}}
    for promise, tests in counts.items():  # a test that ran again counts once
        found["promises"][promise] = found["promises"].get(promise, {}) | tests
    found |= {"date": datetime.date.today().isoformat(), "cores": os.cpu_count()}
    file.write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
