"""Whether vLLM can serve an adapter as one, or only the merged model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lockstep.artifacts import atomic, filenames, manifest
from lockstep.model import vllm_table
from lockstep.model.vllm_support import RANKS, only_merged
from lockstep.settings.schema import Model


@dataclass(frozen=True)
class Route:
    """How an adapter can be served.

    Attributes:
        mode: lora, as an adapter on its base; merged, only as a part of it.
        reason: why, for messages.
        max_lora_rank: what vLLM must be started with, of RANKS; None where it must be merged.
    """

    mode: Literal["lora", "merged"]
    reason: str
    max_lora_rank: int | None


def inspect(folder: Path, base: Path | None = None) -> Route:
    """Whether vLLM serves an adapter that is on disk, trained here or elsewhere, or only the merged model.

    Args:
        folder: holds adapter_model.safetensors and adapter_config.json.
        base: the folder of its base; where not given, that of the adapter's manifest.

    Raises:
        UserError: it cannot be merged either: damaged, without effect, of another kind, or of another base.
    """
    from lockstep.model import adapter_files, merge_plan  # torch takes seconds

    base = base or Model.model_validate(manifest.read(folder).config["model"]).folder
    adapter = adapter_files.read(folder)
    merge_plan.plan_merge(base, adapter)
    options, config = adapter_files.read_config(folder), atomic.read_json(base / filenames.CONFIG)
    rank = max([options["r"], *(options.get("rank_pattern") or {}).values()])  # vLLM asks no further
    if reason := only_merged(adapter, config, rank):
        return Route("merged", reason, None)
    bucket = next(known for known in RANKS if known >= rank)
    return Route("lora", f"plain LoRA of rank {rank}, which vLLM adds to {vllm_table.architecture_of(config)}", bucket)
