"""docs/reliability.md out of the figures that a test run collected.

Run     LOCKSTEP_FIGURES=figures.json make test test-long test-e2e test-faults
        .venv/bin/python tests/faults/write_reliability.py figures.json
"""

import json
import platform
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/reliability.md"
TEXT = """# Reliability: what is promised, and what was tried

Each promise is attacked by tests; a case is one attack. The figures are those of the last time that each test ran.

| promise | cases | passed |
|---|---:|---:|
{rows}

{date}, {machine}.

How to run it again:

```
LOCKSTEP_FIGURES=figures.json make test test-long test-e2e test-faults
.venv/bin/python tests/faults/write_reliability.py figures.json
HYPOTHESIS_PROFILE=long .venv/bin/python -m pytest tests/unit/test_fuzzing.py
LOCKSTEP_KILLS=every .venv/bin/python -m pytest -m faults tests/faults/test_kills.py
```

The last two lines try more of the same, for hours: longer random inputs, and kills at many moments of each place.

The attacks stand in `tests/faults/`, and the quick ones run in every `make test`. Known advisories and
dated exceptions are in `tests/faults/advisories.yaml`.
{failed}"""


def table(found: dict[str, dict[str, dict[str, int]]]) -> tuple[str, str]:
    """(the rows, what did not pass)."""
    rows, failed = [], []
    for promise, tests in sorted(found.items()):
        done, of = (sum(test[key] for test in tests.values()) for key in ("done", "of"))
        rows.append(f"| {promise} | {of:,} | {done:,} |")
        failed += [f"- `{name}`" for name, test in sorted(tests.items()) if test["done"] < test["of"]]
    return "\n".join(rows), "\n## What did not pass\n\n" + "\n".join(failed) + "\n" if failed else ""


def main() -> None:
    figures = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows, failed = table(figures["promises"])
    machine = (
        f"{platform.system()} on {platform.machine()}, {figures['cores']} CPU cores, Python {platform.python_version()}"
    )
    DOCUMENT.write_text(TEXT.format(rows=rows, date=figures["date"], machine=machine, failed=failed), encoding="utf-8")


if __name__ == "__main__":
    main()
