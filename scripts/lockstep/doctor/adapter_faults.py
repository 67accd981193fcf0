"""Which of the ten faults an adapter's folder shows, by its config, tokenizer, template and log, not its weights."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.doctor import template_faults
from lockstep.doctor.findings import SEED_FAULT, Finding
from lockstep.doctor.project import OF_FOUR_BITS
from lockstep.errors import UserError

FEW = ({"q_proj", "v_proj"}, {"q", "v"}, {"query", "value"})  # what PEFT takes where target_modules is None
ENDS_TURN = re.compile(r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|</s>|<\|endoftext\|>")
NOT_SERVED = ("use_dora", "lora_bias")


def check(folder: Path) -> Iterator[Finding]:
    """The faults of an adapter's folder. Raises UserError where its config cannot be read."""
    config = _json(folder / filenames.ADAPTER_CONFIG)
    if (folder / filenames.MANIFEST).is_file():
        return  # ours: stages 02 and 03 have looked
    yield from _config(folder, config)
    yield from _tokenizer(folder)
    yield from _log(folder)


def check_model(folder: Path) -> Iterator[Finding]:
    """The faults of a whole model's folder, by its tokenizer, template and log. Raises UserError."""
    if not (folder / filenames.MANIFEST).is_file():
        yield from _tokenizer(folder)
        yield from _log(folder)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{paths.label(file)} cannot be read as JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _fault(number: int, file: Path, key: str, what: str, cure: str) -> Finding:
    """A finding at the line of a file on which a key stands."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    line = next((str(n) for n, text in enumerate(lines, 1) if key in text), "1")
    return Finding(f"{SEED_FAULT}{number}", what, cure, file=paths.label(file), lines=(line,))


def _config(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    file = folder / filenames.ADAPTER_CONFIG
    targets = config.get("target_modules")
    if isinstance(targets, list) and set(targets) in FEW and not config.get("target_parameters"):
        what = (
            f"only {' and '.join(sorted(targets))} are adapted, which is what target_modules=None gives: the other "
            f"linear layers learned nothing"
        )
        yield _fault(
            9, file, '"target_modules"', what, 'train again with target_modules="all-linear", if that was meant'
        )
    base = str(config.get("base_model_name_or_path") or "")
    if OF_FOUR_BITS.search(base) or OF_FOUR_BITS.search(folder.name):
        what = (
            f"it was trained on 4-bit weights ({base or folder.name}): merged onto the original ones, or served on "
            f"them, it is another model than was trained, and nothing here tells by how much"
        )
        cure = f"measure it: `make merge ARGS='--adapter.path {paths.label(folder)}'`"
        yield _fault(8, file, '"base_model_name_or_path"', what, cure)
    unserved = [name for name in NOT_SERVED if config.get(name)]
    unserved += ["modules_to_save"] if config.get("modules_to_save") else []
    if unserved:
        what = f"{', '.join(unserved)}: vLLM does not serve such an adapter beside its base"
        yield _fault(7, file, f'"{unserved[0]}"', what, "merge it, and serve the merged model")


def _tokenizer(folder: Path) -> Iterator[Finding]:
    file = folder / filenames.TOKENIZER_CONFIG
    if not file.is_file():
        return
    config = _json(file)
    text, place = config.get("chat_template"), file
    if (folder / filenames.CHAT_TEMPLATE).is_file():
        place = folder / filenames.CHAT_TEMPLATE
        text = place.read_text(encoding="utf-8", errors="replace")
    if not isinstance(text, str):
        what = "its tokenizer has no chat template: servers take the base's, or none, whatever it was trained on"
        yield _fault(2, file, "{", what, "save the template that it was trained on as chat_template.jinja beside it")
        return
    if word := template_faults.damaged_token(text):
        what = f"its chat template holds {word}, which is no control token but almost one"
        yield _fault(3, place, word, what, "take the base model's own template")
    ends = set(ENDS_TURN.findall(text))
    eos = config.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if ends and isinstance(eos, str) and not _stops(folder, ends, eos):
        what = (
            f"its template ends turns with {', '.join(sorted(ends))}, and eos_token is {eos}: answers run on to "
            f"max_tokens"
        )
        yield _fault(1, file, '"eos_token"', what, f"set eos_token to {min(ends)} here and in generation_config.json")


def _stops(folder: Path, ends: set[str], eos: str) -> bool:
    """Whether generation stops at a token that ends turns."""
    if eos in ends:
        return True
    generation = folder / filenames.GENERATION_CONFIG
    return generation.is_file() and isinstance(_json(generation).get("eos_token_id"), list)


def _log(folder: Path) -> Iterator[Finding]:
    file = folder / filenames.TRAINER_STATE
    if not file.is_file():
        return
    history = _json(file).get("log_history")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    if entries and not any(key.startswith("eval_") for entry in entries for key in entry):
        what = "its log has no held-out loss: nothing tells whether it is better than its base"
        yield _fault(
            10,
            file,
            '"log_history"',
            what,
            "measure base and tuned model on rows that were kept apart: `make evaluate`",
        )
