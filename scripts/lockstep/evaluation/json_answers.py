"""Answers that are JSON objects: whether they parse, and which fields are right, wrong, missing or extra."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lockstep.evaluation import measures
from lockstep.evaluation.catalogue import scale
from lockstep.evaluation.measures import Measure
from lockstep.text import json_text

Fields = dict[str, str]  # path → value, written as JSON
RIGHT, WRONG, MISSING, EXTRA = "right", "wrong", "missing", "extra"


def fields(text: str) -> Fields | None:
    """The fields of a text that is a JSON object and nothing else (a code fence around it is something else).

    A nested field is named by its path, such as `address.city` or `items[0].name`; an empty object or list
    is a field of its own. Values are compared as JSON writes them: 1, 1.0, true and "1" differ, and
    so do an absent field and null. None where the text is not an object, or repeats a key.
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
            # a key that holds a separator must not look like a path
            name = key.replace("\\", "\\\\").replace(".", "\\.").replace("[", "\\[")
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{place}]")
    else:
        yield path, json.dumps(value, ensure_ascii=False, allow_nan=False)


def compare(predicted: Fields | None, expected: Fields) -> dict[str, str]:
    """path → RIGHT, WRONG, MISSING or EXTRA. Where the answer is not an object (None), every field is missing."""
    predicted = predicted or {}
    kinds = {}
    for path, value in expected.items():
        if path not in predicted:
            kinds[path] = MISSING
        else:
            kinds[path] = RIGHT if predicted[path] == value else WRONG
    return kinds | {path: EXTRA for path in predicted if path not in expected}


def score_fields(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Measure]:
    """json_valid; field_accuracy and field_missing, shares of the references' fields; field_extra, of the answers'.

    Empty where one of the references is not a JSON object.
    """
    expected = []
    for text in references:
        reference = fields(text)
        if reference is None:
            return {}
        expected.append(reference)
    if not expected:
        return {}
    predicted = [fields(text) for text in predictions]
    counts = [Counter(compare(*pair).values()) for pair in zip(predicted, expected, strict=True)]
    sizes_expected = [len(reference) for reference in expected]
    sizes_predicted = [len(prediction or {}) for prediction in predicted]

    def part(name: str, kind: str, sizes: list[int]) -> Measure:
        return measures.ratio([count[kind] for count in counts], sizes, *scale(name))

    return {
        "json_valid": measures.share([prediction is not None for prediction in predicted], *scale("json_valid")),
        "field_accuracy": part("field_accuracy", RIGHT, sizes_expected),
        "field_missing": part("field_missing", MISSING, sizes_expected),
        "field_extra": part("field_extra", EXTRA, sizes_predicted),
    }
