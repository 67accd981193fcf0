"""Answers that are JSON objects: whether they parse, and which fields are right, wrong, missing or too many."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lockstep.evaluation import measures
from lockstep.evaluation.measures import HIGHER, LOWER, Measure
from lockstep.text import json_text

Fields = dict[str, str]  # path → value, written as JSON
RIGHT, WRONG, MISSING, EXTRA = "right", "wrong", "missing", "extra"


def fields(text: str) -> Fields | None:
    """The fields of a text that is a JSON object and nothing else (a fence around it is something else).

    A nested field's name is its path, as `address.city` or `items[0].name`; an empty object or list
    is a field of its own. Values are compared as JSON writes them: 1, 1.0, true and "1" differ, and
    so do an absent field and null. None where it is no object, or says a key twice.
    """
    try:
        value = json_text.loads(text)
        return dict(_leaves(value, "")) if isinstance(value, Mapping) else None
    except (ValueError, RecursionError):
        return None


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, json_text.JsonObject) and value.duplicate_key is not None:
        raise ValueError(value.duplicate_key)
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            name = key.replace("\\", "\\\\").replace(".", "\\.").replace("[", "\\[")
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{place}]")
    else:
        yield path, json.dumps(value, ensure_ascii=False, allow_nan=False)


def compare(said: Fields | None, wanted: Fields) -> dict[str, str]:
    """path → RIGHT, WRONG, MISSING or EXTRA. Of what is no object all is missing."""
    said = {} if said is None else said
    found = {path: MISSING if path not in said else RIGHT if said[path] == value else WRONG
             for path, value in wanted.items()}  # fmt: skip
    return found | {path: EXTRA for path in said if path not in wanted}


def measure(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Measure]:
    """json_valid; field_accuracy and field_missing, shares of the wanted fields; field_extra, of the fields said.

    Nothing where a wanted answer is no JSON object.
    """
    wanted = [fields(text) for text in references]
    if not wanted or any(one is None for one in wanted):
        return {}
    said = [fields(text) for text in predictions]
    counts = [Counter(compare(one, other or {}).values()) for one, other in zip(said, wanted, strict=True)]
    wants = [len(other or {}) for other in wanted]
    says = [len(one or {}) for one in said]

    def part(kind: str, of: list[int], better: int) -> Measure:
        return measures.ratio([count[kind] for count in counts], of, better)

    return {
        "json_valid": measures.share([one is not None for one in said]),
        "field_accuracy": part(RIGHT, wants, HIGHER),
        "field_missing": part(MISSING, wants, LOWER),
        "field_extra": part(EXTRA, says, LOWER),
    }


def by_field(predictions: Sequence[str], references: Sequence[str]) -> dict[str, dict[str, int]]:
    """path → how often it was right, wrong, missing and extra, over all rows whose wanted answer is an object."""
    found: dict[str, Counter[str]] = {}
    for said, reference in zip(predictions, references, strict=True):
        if (wanted := fields(reference)) is not None:
            for path, kind in compare(fields(said), wanted).items():
                found.setdefault(path, Counter())[kind] += 1
    return {path: dict(counts) for path, counts in found.items()}
