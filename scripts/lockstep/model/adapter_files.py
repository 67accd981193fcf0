"""An adapter's folder as PEFT saved it: read, or refused where this merge would compute something else than PEFT."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model import stacked_update
from lockstep.model.adapter_delta import EMBEDDINGS, AdapterDelta, LowRank, TrainedRows
from lockstep.model.stacked_update import StackedLowRank

PREFIX = "base_model.model."
# Options of PEFT's that this merge does not know.
UNSUPPORTED = (
    "lora_bias",
    "layer_replication",
    "fan_in_fan_out",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
# These starts subtract the fresh adapter from the base, so the base on disk is not the one that was trained on.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
ROWS = ".token_adapter.trainable_tokens_delta"  # the ending of trained rows' names
BELOW = ".base_layer.weight"  # the ending of what an adapter was trained on, where PEFT saves that


def read_config(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json. Raises UserError where there is none, or where it is no LoRA adapter's."""
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
    refuse_unsupported(config)
    return of_tensors(load_tensors(folder), config)


def of_tensors(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> AdapterDelta:
    """An adapter from what PEFT saves: tensors by the names in its file, and its config.

    Raises:
        UserError: as `read` does, but for its options.
    """
    tensors = _without_prefix(state)
    # each kind is taken out of `tensors`; what is left are whole tensors
    low_rank = _pop_low_ranks(tensors, config)
    for module in _modules(tensors, ".lora_embedding_"):
        low_rank[f"{module}.weight"] = _pop_embedding(module, tensors, config)
    rows = {f"{module}.weight": _pop_rows(module, tensors, config) for module in _owners(tensors, ROWS)}
    below = {f"{module}.weight": tensors.pop(f"{module}{BELOW}") for module in _owners(tensors, BELOW)}
    whole = {name.replace(".base_layer.bias", ".bias"): tensor for name, tensor in tensors.items()}
    options = {"modules_to_save": tuple(config.get("modules_to_save") or ()), "bias": config.get("bias", "none")}
    saved = _trained_whole(whole, AdapterDelta(low_rank, **options), bool(config.get("ensure_weight_tying")))
    # where a vocabulary grew, PEFT saves embeddings that were not trained, too
    embeddings = below | {
        name: tensor
        for name, tensor in whole.items()
        if name.endswith(EMBEDDINGS) and name not in saved and name not in low_rank
    }
    for name in sorted({*whole, *embeddings}):
        trained = name in saved and name not in low_rank
        if not trained and not (name in embeddings and name.endswith(EMBEDDINGS)):
            raise UserError(f"the adapter holds {name}, which this merge does not know")
    trained_whole = {name: whole[name] for name in saved}
    adapter = AdapterDelta(low_rank, trained_whole, rows, embeddings, **options)
    if not adapter.names:
        raise UserError("the adapter holds no tensors: it was not trained, or damaged")
    return adapter


def _trained_whole(whole: Mapping[str, Tensor], adapter: AdapterDelta, tied: bool) -> set[str]:
    """The names of those whole tensors that were trained.

    Args:
        tied: PEFT trained tied tensors as one (`ensure_weight_tying`), and saved it under each of its names.
    """
    saved = {name for name in whole if adapter.saves(name)}
    if tied:
        saved |= {name for name in whole if any(torch.equal(whole[name], whole[other]) for other in saved)}
    return saved


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of an adapter's file, by their names without PEFT's prefix."""
    tensors = {}
    for name, tensor in state.items():
        if not name.startswith(PREFIX):
            raise UserError(
                f"the adapter holds {name}, and PEFT's names begin with {PREFIX}: it would be left out in silence"
            )
        if not tensor.isfinite().all():
            raise UserError(f"the adapter holds values that are not finite, in {name}: its training failed")
        tensors[name.removeprefix(PREFIX).replace(".token_adapter.base_layer.", ".base_layer.")] = tensor
    # Of modules_to_save with more rows, PEFT saves the layer before training, and the trained one twice.
    for name in list(tensors):
        plain = name.replace(".original_module.", ".").replace(".modules_to_save.", ".")
        if plain != name and plain in tensors:
            del tensors[name]
    return tensors


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter's file, by the names in it. Raises UserError where there is none that can be read."""
    file = folder / filenames.ADAPTER_WEIGHTS
    if not file.exists():
        hint = ""
        for name in ("adapter_model.bin", "adapter_model.pt"):
            if (folder / name).exists():
                hint += (
                    f": {name} there is a pickle, which could run code and is never loaded; "
                    "save it with PEFT as safetensors"
                )
        raise UserError(f"{paths.label(folder)} holds no {filenames.ADAPTER_WEIGHTS}{hint}")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise UserError(f"{paths.label(file)} cannot be read: {error}") from error


def _modules(tensors: Mapping[str, Tensor], *parts: str) -> list[str]:
    """The modules whose low-rank tensors have one of these parts in their names."""
    return sorted({name.rsplit(".lora_", 1)[0] for name in tensors if any(part in name for part in parts)})


def _owners(tensors: Mapping[str, Tensor], ending: str) -> list[str]:
    """The modules that have a tensor with this ending."""
    return sorted(name.removesuffix(ending) for name in tensors if name.endswith(ending))


def refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Raise UserError where an adapter uses an option that this merge does not know."""
    used = [key for key in UNSUPPORTED if config.get(key)]
    if config.get("peft_type", "LORA") != "LORA":
        used.append(f"peft_type {config['peft_type']}")
    if used:
        raise UserError(f"the adapter uses {', '.join(used)}, which this merge does not know")
    start = str(config.get("init_lora_weights", True))
    if start.startswith(CHANGE_THE_BASE):
        raise UserError(
            f"the adapter uses init_lora_weights {start}, which this merge does not know: it was trained on a base "
            "that is not the one on disk; save it again with PEFT's path_initial_model_for_weight_conversion, "
            "as a plain adapter"
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


def _pop_low_ranks(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, LowRank | StackedLowRank]:
    """The updates of linear layers and of experts, by parameter, taken out of `tensors`."""
    modules = _modules(tensors, ".lora_A.", ".lora_B.")
    targets = config.get("target_parameters") or ()
    wrappers = Counter(module.replace(stacked_update.INNER, "") for module in modules)
    low_rank: dict[str, LowRank | StackedLowRank] = {}
    for module in modules:
        parameter = stacked_update.parameter_of(module, wrappers, targets) if targets else None
        if parameter is None:
            low_rank[f"{module}.weight"] = _pop_low_rank(module, tensors, config)
        else:
            low_rank[parameter] = _pop_stacked(module, parameter, tensors, config)
    return low_rank


def _pop_stacked(
    module: str, parameter: str, tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> LowRank | StackedLowRank:
    """The update of one parameter that PEFT's `target_parameters` names."""
    a, b = _pop(tensors, f"{module}.lora_A.weight"), _pop(tensors, f"{module}.lora_B.weight")
    rank = int(_setting(parameter, config, "r", "rank_pattern"))
    if len(a) == rank:  # a matrix, such as that of a router
        return _checked(parameter, LowRank(a, b, 1.0), config)
    a, b = stacked_update.stacked(parameter, a, b, rank)
    if not (b.any() and a.any()):
        raise UserError(f"the adapter has no effect on {parameter}: it was not trained, or damaged")
    return StackedLowRank(a, b, _scale(parameter, rank, config))


def _pop_low_rank(module: str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> LowRank:
    """One module's update, taken out of `tensors`."""
    a, b = _pop(tensors, f"{module}.lora_A.weight"), _pop(tensors, f"{module}.lora_B.weight")
    magnitude = _pop(tensors, f"{module}.lora_magnitude_vector") if config.get("use_dora") else None
    return _checked(module, LowRank(a, b, 1.0, magnitude), config)


def _pop_embedding(module: str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> LowRank:
    """The same for an embedding, whose A [r, vocabulary] and B [size, r] stand the other way round."""
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


def _pop_rows(layer: str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> TrainedRows:
    """The trained rows of one embedding, taken out of `tensors`."""
    values, indices = tensors.pop(f"{layer}{ROWS}"), config.get("trainable_token_indices") or ()
    if isinstance(indices, Mapping):
        indices = next((ids for name, ids in indices.items() if f".{layer}".endswith(f".{name}")), ())
    if len(indices) != len(values):
        raise UserError(f"the adapter is damaged: {layer} has {len(values)} rows, and {len(indices)} in its config")
    return TrainedRows(torch.tensor(indices, dtype=torch.long), values)
