"""Does the adapter act? What of its file reaches the base, and what would be left out in silence."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.model.checkpoint_names import CheckpointNames
from lockstep.verification.adapter_contents import AdapterContents
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

SHOWN = 3  # names in a list
# Modules that a training on text may never reach, so that their updates stay zero: single experts, images, sound.
UNREACHED = re.compile(r"experts?\.|vision|visual|image|audio|speech|multi_modal|mm_projector", re.IGNORECASE)


def of_adapter(folder: Path, contents: AdapterContents, names: CheckpointNames | None) -> Proof:
    """Whether an adapter acts, as far as its files tell.

    Args:
        names: of the base; None where no base is given.
    """
    figures = _figures(contents)
    label = paths.label(folder)
    if contents.not_finite:
        text = f"{contents.not_finite[0]} holds values that are not finite, as {len(contents.not_finite)} tensors do"
        return Proof(FAILED, figures, "other_weights", text, "train again: its numbers ran away")
    if contents.problem:
        return Proof(UNKNOWN, figures, None, f"{label}: {contents.problem}", "save it again with PEFT")
    if not contents.delta.names:
        text = f"all {len(contents.silent)} modules are without effect: a factor of their update is zero"
        return Proof(FAILED, figures, "no_effect", text, "train it: these are the numbers that a fresh adapter has")
    if contents.odd:
        text = (
            f"{len(contents.odd)} names fit no module of the base, the first is {contents.odd[0]}: servers leave such "
            f"tensors out without a word"
        )
        hint = "save the adapter again with PEFT, on the base that it will be served with"
        return Proof(FAILED, figures, "no_effect" if _all_odd(contents) else "partial", text, hint)
    if contents.absent:
        text = f"nothing is held for {len(contents.absent)} modules that its config targets: {_some(contents.absent)}"
        return Proof(FAILED, figures, "partial", text, "save the whole adapter again with PEFT")
    if names is not None and (suspicious := _suspicious(contents, names)):
        text = f"{len(suspicious)} modules are without effect, and the same of other layers act: {_some(suspicious)}"
        return Proof(FAILED, figures, "partial", text, "save the whole adapter again with PEFT, or train it again")
    return Proof(PASSED, figures, None, _acting(contents, names is not None), _hint(names))


def _figures(contents: AdapterContents) -> dict[str, Any]:
    config, delta = contents.config, contents.delta
    adapted = sum(name in delta.low_rank for name in contents.linear)
    return {
        "modules": len(delta.low_rank),
        "whole_tensors": len(delta.whole) + len(delta.embeddings),
        "trained_rows": sum(len(rows.indices) for rows in delta.rows.values()),
        "linear_modules_of_base": len(contents.linear) or None,
        "coverage": round(adapted / len(contents.linear), 4) if contents.linear else None,
        "without_effect": len(contents.silent),
        "unknown_names": len(contents.odd),
        "not_finite": len(contents.not_finite),
        "absent": len(contents.absent),
        "rank": config["r"],
        "lora_alpha": config["lora_alpha"],
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
    }


def _all_odd(contents: AdapterContents) -> bool:
    return len(contents.odd) >= len(contents.delta.names)


def _suspicious(contents: AdapterContents, names: CheckpointNames) -> list[str]:
    """Modules without effect whose like in other layers act, where a training on text reaches all of them."""
    config = names.network.config.get_text_config()
    if getattr(config, "num_kv_shared_layers", 0):  # layers that take keys and values from others
        return []
    acting = {_kind(name.removesuffix(".weight")) for name in contents.delta.low_rank}
    return [name for name in contents.silent if _kind(name) in acting and not UNREACHED.search(name)]


def _kind(module: str) -> str:
    """A module's name without its layer's number."""
    return re.sub(r"\.\d+\.", ".*.", module)


def _acting(contents: AdapterContents, has_base: bool) -> str:
    delta = contents.delta
    kinds = ", ".join(Counter(name.split(".")[-2] for name in delta.low_rank))
    parts = [f"{len(delta.low_rank)} modules act ({kinds})"] if delta.low_rank else []
    if delta.low_rank and has_base and contents.linear:
        adapted = sum(name in delta.low_rank for name in contents.linear)
        parts.append(f"{adapted} of the base's {len(contents.linear)} linear layers are adapted")
    if delta.whole:
        parts.append(f"{len(delta.whole)} tensors were trained whole")
    if delta.rows:
        parts.append(f"{sum(len(rows.indices) for rows in delta.rows.values())} rows of embeddings")
    if contents.silent:
        parts.append(f"{len(contents.silent)} are without effect ({_some(contents.silent)})")
    return "; ".join(parts)


def _hint(names: CheckpointNames | None) -> str:
    if names is None:
        return "give --base to see whether all names are those of its modules"
    return ""


def _some(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
