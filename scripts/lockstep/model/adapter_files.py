"""An adapter's folder, as PEFT saved it: read, and refused where this merge would not do what PEFT does."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model.adapter_delta import EMBEDDINGS, AdapterDelta, LowRank, Rows

PREFIX = "base_model.model."
UNSUPPORTED = (
    "lora_bias", "target_parameters", "layer_replication", "fan_in_fan_out", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "monteclora_config", "use_bdlora", "use_qalora",
)  # fmt: skip
# These starts subtract the fresh adapter from the base, so the base on disk is not the one that was trained on.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
DELTA = ".token_adapter.trainable_tokens_delta"


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises UserError where there is none, or it is none of LoRA's."""
    file = folder / filenames.ADAPTER_CONFIG
    try:
        config = atomic.read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{paths.label(folder)} holds no adapter: adapter_config.json cannot be read ({error})"
        ) from error
    if not isinstance(config, dict) or not {"r", "lora_alpha"} <= config.keys():
        kind = config.get("peft_type", "nothing known") if isinstance(config, dict) else "nothing known"
        raise UserError(
            f"{paths.label(file)} describes {kind}, and only LoRA's relatives can be merged and served here"
        )
    for key, kind in (("r", int), ("lora_alpha", int | float), ("base_model_name_or_path", str | None)):
        if not isinstance(config.get(key), kind) or isinstance(config.get(key), bool):
            raise UserError(f"{paths.label(file)}: {key} is {config.get(key)!r}")
    return config


def read(folder: Path) -> AdapterDelta:
    """An adapter as PEFT saved it.

    Raises:
        UserError: an option or a tensor that this merge does not know, a tensor without its
            partner, or an adapter that changes nothing.
    """
    config = read_config(folder)
    _refuse_unsupported(config)
    tensors = _tensors(folder)
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_A." in name or ".lora_B." in name})
    low_rank = {f"{module}.weight": _low_rank(module, tensors, config) for module in modules}
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_embedding_" in name})
    low_rank |= {f"{layer}.weight": _embedding(layer, tensors, config) for layer in layers}
    rows = {f"{layer}.weight": _rows(layer, tensors, config) for layer in _owners(tensors, DELTA)}
    under = {
        f"{layer}.weight": tensors.pop(f"{layer}.base_layer.weight") for layer in _owners(tensors, ".base_layer.weight")
    }
    whole = {name.replace(".base_layer.bias", ".bias"): tensor for name, tensor in tensors.items()}
    adapter = AdapterDelta(
        low_rank, modules_to_save=tuple(config.get("modules_to_save") or ()), bias=config.get("bias", "none")
    )
    saved = {name for name in whole if adapter.saves(name)}
    if config.get("ensure_weight_tying"):  # the one tensor stands there under each of its names
        saved |= {name for name in whole if any(torch.equal(whole[name], whole[other]) for other in saved)}
    under |= {name: whole[name] for name in whole if name not in saved | low_rank.keys() and name.endswith(EMBEDDINGS)}
    unknown = {*whole, *under} - (saved - low_rank.keys()) - {name for name in under if name.endswith(EMBEDDINGS)}
    if unknown:
        raise UserError(f"the adapter holds {min(unknown)}, which this merge does not know")
    adapter = replace(adapter, whole={name: whole[name] for name in saved}, rows=rows, embeddings=under)
    if not adapter.names:
        raise UserError("the adapter holds no tensors: it was not trained, or damaged")
    return adapter


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter's file, by their names without PEFT's prefix."""
    file = folder / filenames.ADAPTER_WEIGHTS
    if not file.exists():
        pickled = "".join(f": {name} there is a pickle, which could run code and is never loaded; save it with PEFT as safetensors" for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists())  # fmt: skip
        raise UserError(f"{paths.label(folder)} holds no {filenames.ADAPTER_WEIGHTS}{pickled}")
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise UserError(f"{paths.label(file)} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise UserError(
                f"the adapter holds {name}, and PEFT's names begin with {PREFIX}: it would be left out in silence"
            )
        if not tensor.isfinite().all():
            raise UserError(f"the adapter holds values that are not finite, in {name}: its training failed")
    plain = {
        name.removeprefix(PREFIX).replace(".token_adapter.base_layer.", ".base_layer."): t
        for name, t in tensors.items()
    }
    # Of modules_to_save with more rows, PEFT saves the layer before training, and the trained one twice.
    for name in [name for name in plain if ".original_module." in name or ".modules_to_save." in name]:
        if name.replace(".original_module.", ".").replace(".modules_to_save.", ".") in plain:
            del plain[name]
    return plain


def _owners(tensors: Mapping[str, Tensor], ending: str) -> list[str]:
    return sorted(name.removesuffix(ending) for name in tensors if name.endswith(ending))


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    used = [key for key in UNSUPPORTED if config.get(key)]
    if config.get("peft_type", "LORA") != "LORA":
        used.append(f"peft_type {config['peft_type']}")
    if used:
        raise UserError(f"the adapter uses {', '.join(used)}, which this merge does not know")
    start = str(config.get("init_lora_weights", True))
    if start.startswith(CHANGE_THE_BASE):
        raise UserError(
            f"the adapter uses init_lora_weights {start}, which this merge does not know: it was trained on a base that is "
            f"not the one on disk; save it again with PEFT's path_initial_model_for_weight_conversion, as a plain adapter"
        )


def _setting(module: str, config: Mapping[str, Any], default: str, pattern: str) -> float:
    """The rank or alpha of one module."""
    patterns: dict[str, float] = config.get(pattern) or {}
    value: float = config[default]
    if patterns:
        from peft.utils.other import get_pattern_key  # takes seconds

        value = patterns.get(get_pattern_key(list(patterns), module), value)
    return value


def _scale(module: str, rank: float, config: Mapping[str, Any]) -> float:
    alpha = _setting(module, config, "lora_alpha", "alpha_pattern")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pop(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"the adapter is incomplete: {name} is missing")
    return tensors.pop(name)


def _low_rank(module: str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> LowRank:
    """Take one module's update out of `tensors`."""
    a, b = _pop(tensors, f"{module}.lora_A.weight"), _pop(tensors, f"{module}.lora_B.weight")
    magnitude = _pop(tensors, f"{module}.lora_magnitude_vector") if config.get("use_dora") else None
    return _checked(module, LowRank(a, b, 1.0, magnitude), config)


def _embedding(module: str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> LowRank:
    """The same of an embedding, whose A [r, vocabulary] and B [size, r] stand the other way round."""
    if config.get("use_dora"):
        raise UserError(f"the adapter uses DoRA on {module}, which this merge does not know of an embedding")
    a, b = _pop(tensors, f"{module}.lora_embedding_A"), _pop(tensors, f"{module}.lora_embedding_B")
    return _checked(module, LowRank(b.t(), a.t(), 1.0), config)


def _checked(module: str, update: LowRank, config: Mapping[str, Any]) -> LowRank:
    if update.a.ndim != 2 or update.b.ndim != 2:
        raise UserError(f"the adapter is damaged: {module} has tensors that are no matrices")
    if not (update.b.any() and update.a.any()):
        raise UserError(f"the adapter has no effect on {module}: it was not trained, or damaged")
    rank = _setting(module, config, "r", "rank_pattern")
    if not update.rank == update.b.shape[1] == rank:
        raise UserError(f"the adapter is damaged: {module} has rank {update.rank}, and rank {rank} in its config")
    return LowRank(update.a, update.b, _scale(module, rank, config), update.magnitude)


def _rows(layer: str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Rows:
    """Take the rows that were trained of one embedding out of `tensors`."""
    values, given = tensors.pop(f"{layer}{DELTA}"), config.get("trainable_token_indices") or ()
    if isinstance(given, Mapping):
        given = next((ids for name, ids in given.items() if f".{layer}".endswith(f".{name}")), ())
    if len(given) != len(values):
        raise UserError(f"the adapter is damaged: {layer} has {len(values)} rows, and {len(given)} in its config")
    return Rows(torch.tensor(given, dtype=torch.long), values)
