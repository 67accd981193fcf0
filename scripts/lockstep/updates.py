"""What an adapter does to its base: low-rank updates, and tensors that were trained as a whole.

Names, arithmetic and the rule by which a pattern picks a module's rank are those of PEFT 0.21.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lockstep.errors import UserError
from lockstep.servable import WEIGHTS

PREFIX = "base_model.model."
UNSUPPORTED = (
    "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication", "fan_in_fan_out",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "use_qalora",
)  # fmt: skip
# These starts subtract the fresh adapter from the base, so the base on disk is not the one that was trained on.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LowRank:
    """W + scale · B [out, r] · A [r, in]; with DoRA's magnitude [out], the rows of that sum take these lengths."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def fits(self, weight: Tensor) -> bool:
        """Whether the update has this weight's shape."""
        rows = self.b if self.magnitude is None else self.magnitude
        return weight.shape == (len(self.b), self.a.shape[1]) and len(rows) == len(weight)

    def added_to(self, weight: Tensor) -> Tensor:
        """The trained weight, in float32."""
        total = weight.float() + self.scale * (self.b.float() @ self.a.float())
        if self.magnitude is None:
            return total
        scaled: Tensor = (self.magnitude.float() / torch.linalg.norm(total, dim=1))[:, None] * total
        return scaled


@dataclass(frozen=True)
class Adapter:
    """What was trained, by the names of the base's tensors; without arguments, nothing."""

    low_rank: dict[str, LowRank] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)  # these take the base tensors' place
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"

    @property
    def names(self) -> set[str]:
        """Every tensor that the adapter changes."""
        return {*self.low_rank, *self.whole}

    def saves(self, name: str) -> bool:
        """Whether PEFT saves this base tensor as a whole, by its rules for `bias` and `modules_to_save`."""
        module, _, kind = name.rpartition(".")
        if kind == "bias" and (
            self.bias == "all" or (self.bias == "lora_only" and f"{module}.weight" in self.low_rank)
        ):
            return True
        around = accumulate(module.split("."), "{}.{}".format)
        return any(outer.endswith(self.modules_to_save) for outer in around)

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """What training made of a base tensor; the tensor itself where the adapter leaves it alone.

        Raises:
            UserError: the change has another shape, or is none, or is missing.
        """
        if update := self.low_rank.get(name):
            if not update.fits(weight):
                raise UserError(f"the adapter belongs to another base: {name} has shape {tuple(weight.shape)} there")
            return update.added_to(weight)
        if name in self.whole:
            trained = self.whole[name]
            if trained.shape != weight.shape:
                raise UserError(f"the adapter belongs to another base: {name} has shape {tuple(weight.shape)} there")
            if torch.equal(trained, weight.to(trained.dtype)):
                raise UserError(f"the adapter has no effect on {name}: it was not trained, or damaged")
            return trained
        if self.saves(name):
            raise UserError(f"the adapter is incomplete: {name} is missing")
        return weight


def read(folder: Path) -> Adapter:
    """An adapter as PEFT saved it.

    Raises:
        UserError: an option or a tensor that this merge does not know, a tensor without its
            partner, or an adapter that changes nothing.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    _refuse_unsupported(config)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    modules = {name.rsplit(".lora_", 1)[0] for name in tensors if name.endswith((".lora_A.weight", ".lora_B.weight"))}
    low_rank = {f"{module}.weight": _low_rank(module, tensors, config) for module in sorted(modules)}
    whole = {name.replace(".base_layer.bias", ".bias"): tensor for name, tensor in tensors.items()}
    adapter = Adapter(low_rank, whole, tuple(config.get("modules_to_save") or ()), config.get("bias", "none"))
    saved = {name for name in whole if adapter.saves(name)}
    if config.get("ensure_weight_tying"):  # the one tensor stands there under each of its names
        saved |= {name for name in whole if any(torch.equal(whole[name], whole[other]) for other in saved)}
    if unknown := sorted(whole.keys() - (saved - low_rank.keys())):
        raise UserError(f"the adapter holds {unknown[0]}, which this merge does not know")
    if not adapter.names:
        raise UserError("the adapter holds no tensors: it was not trained, or damaged")
    return adapter


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    used = [key for key in UNSUPPORTED if config.get(key)]
    if str(config.get("init_lora_weights", True)).startswith(CHANGE_THE_BASE):
        used.append(f"init_lora_weights {config['init_lora_weights']}")
    if config.get("peft_type", "LORA") != "LORA":
        used.append(f"peft_type {config['peft_type']}")
    if used:
        raise UserError(f"the adapter uses {', '.join(used)}, which this merge does not know")


def _low_rank(module: str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> LowRank:
    """Take one module's update out of `tensors`."""
    from peft.utils.other import get_pattern_key

    def setting(default: str, pattern: str) -> int:
        patterns: dict[str, int] = config.get(pattern) or {}
        value: int = patterns.get(get_pattern_key(list(patterns), module), config[default])
        return value

    try:
        a, b = tensors.pop(f"{module}.lora_A.weight"), tensors.pop(f"{module}.lora_B.weight")
        magnitude = tensors.pop(f"{module}.lora_magnitude_vector") if config.get("use_dora") else None
    except KeyError as error:
        raise UserError(f"the adapter is incomplete: {error.args[0]} is missing") from error
    if not (b.any() and a.any()):
        raise UserError(f"the adapter has no effect on {module}: it was not trained, or damaged")
    rank = setting("r", "rank_pattern")
    if not len(a) == b.shape[1] == rank:
        raise UserError(f"the adapter is damaged: {module} has rank {len(a)}, and rank {rank} in its config")
    alpha = setting("lora_alpha", "alpha_pattern")
    return LowRank(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), magnitude)
