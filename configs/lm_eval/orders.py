"""Which rows of the demo's test file the lm-eval task uses."""

from typing import Any


def rows(dataset: Any) -> Any:
    """The orders: rows whose answer is one line of JSON."""
    return dataset.filter(lambda row: row["output"].startswith("{"))
