"""Whether vLLM can serve an adapter as one, or only the merged model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lockstep.artifacts import atomic, filenames, manifest
from lockstep.model.vllm_support import BASES, RANKS
from lockstep.settings.schema import Model

if TYPE_CHECKING:
    from lockstep.model.adapter_delta import AdapterDelta


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
    architectures = atomic.read_json(base / filenames.CONFIG).get("architectures") or ["?"]
    config = adapter_files.read_config(folder)
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])  # vLLM asks no further
    if reason := _only_merged(adapter, architectures[0], rank):
        return Route("merged", reason, None)
    bucket = next(known for known in RANKS if known >= rank)
    return Route("lora", f"plain LoRA of rank {rank}, which vLLM adds to {architectures[0]}", bucket)


def _only_merged(adapter: "AdapterDelta", architecture: str, rank: int) -> str | None:
    """Why vLLM does not serve this adapter as one, or None."""
    whole = [*adapter.whole, *adapter.embeddings]
    ends = [name for name in adapter.low_rank if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    modules = {name.removesuffix(".weight").rpartition(".")[2] for name in adapter.low_rank}
    known = BASES.get(architecture, frozenset())
    reasons = {
        "it is DoRA, which vLLM does not serve": any(part.magnitude is not None for part in adapter.low_rank.values()),
        f"it holds {min(whole, default='')} whole, and vLLM serves low-rank updates only": bool(whole),
        f"it has modules_to_save {', '.join(adapter.modules_to_save)}, which vLLM does not serve": bool(
            adapter.modules_to_save
        ),
        f"it has bias {adapter.bias}, which vLLM does not serve": adapter.bias != "none",
        "it holds rows of an embedding, and vLLM serves low-rank updates only": bool(adapter.rows),
        f"it has rank {rank}, and vLLM serves up to {RANKS[-1]}": rank > RANKS[-1],
        f"it changes {min(ends, default='')}, where vLLM takes no adapter of most models": bool(ends),
        f"vLLM is not known to take adapters of {architecture}": not known,
        f"it changes {min(modules - known, default='')}, where vLLM takes no adapter": bool(modules - known),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
