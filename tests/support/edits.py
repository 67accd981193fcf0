"""Files of a run changed by hand, as a fault or an attacker would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_json(file: Path, change: Callable[[Any], Any]) -> None:
    """Replace a JSON file's value by what `change` makes of it."""
    value = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def edit_tensors(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` work on the tensors of a safetensors file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
