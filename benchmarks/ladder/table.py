"""The ladder as it is printed."""

from typing import Any

KINDS = ("rows", "vocabulary", "long", "chats")  # of rows on which models are compared
HEADER = f"{'rung':27} {'mode':6} {' '.join(f'{kind:>9.9}' for kind in KINDS)}"


def row(line: dict[str, Any]) -> str:
    """A line as it is printed."""
    kl = line.get("true_kl") or {}
    figures = " ".join(f"{kl.get(kind, float('nan')):9.5f}" for kind in KINDS)
    parts = []
    for who in ("disk", "live"):
        verdict = line.get(who)
        named = {True: "", False: " (named otherwise)", None: ""}[verdict["named_rightly"]] if verdict else ""
        word = "not asked" if verdict is None else f"{verdict['by']}{named}" if verdict["caught"] else "passed"
        parts.append(f"{who}: {word}")
    return f"{line['name']:27} {line['mode']:6} {figures}  {'  '.join(parts)}"
