"""Which rows of the demo's test file the lm-eval task asks."""

from typing import Any


def rows(dataset: Any) -> Any:
    """Those whose answer is one line of JSON."""
    return dataset.filter(lambda row: row["output"].startswith("{"))
