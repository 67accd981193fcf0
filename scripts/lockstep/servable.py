"""What vLLM can serve of a training's result: asked before the training, not after it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lockstep import manifest, paths
from lockstep.config import Settings
from lockstep.errors import UserError
from lockstep.sections import Model

if TYPE_CHECKING:
    from lockstep.updates import Adapter

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's --max-lora-rank; an adapter fits into the next larger
WEIGHTS = "adapter_model.safetensors"
CONVERTED = ("pissa", "olora")  # beginnings that change the base; saved as a plain adapter of twice the rank
# Bases whose layers vLLM 0.32 can add adapters to, and the names of those layers.
LAYERS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
BASES = {
    **dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM",
                     "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GraniteForCausalLM"), LAYERS),
    "Phi3ForCausalLM": frozenset({"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
}  # fmt: skip


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


def rank_as_saved(settings: Settings) -> int:
    """The rank of the adapter's files."""
    return settings.lora.r * (2 if settings.lora.init_lora_weights.startswith(CONVERTED) else 1)


def check(settings: Settings) -> None:
    """Refuse a training whose result could not be served the way the settings say.

    Raises:
        UserError: names the setting, the reason and the way out.
    """
    lora, as_adapter = settings.lora, settings.serve.mode == "lora"
    if settings.method == "full":
        if as_adapter:
            raise UserError(
                "--method full makes no adapter, so --serve.mode lora has nothing to serve: take --serve.mode merged"
            )
        if lora.start_from or lora.loraplus_lr_ratio:
            raise UserError("--method full trains no adapter: drop the lora settings")
        return
    if settings.method == "qlora" and lora.init_lora_weights.startswith(CONVERTED):
        raise UserError(
            f"--lora.init_lora_weights {lora.init_lora_weights} takes its beginning out of the base, which a 4-bit base "
            f"cannot hold exactly: what is trained could not be served; take --method lora"
        )
    if settings.method == "qlora" and lora.init_lora_weights == "orthogonal":
        raise UserError("--lora.init_lora_weights orthogonal: PEFT cannot begin so on a 4-bit base; take --method lora")
    if not as_adapter:
        return
    reasons = {
        "--lora.use_dora": lora.use_dora,
        "--lora.modules_to_save": bool(lora.modules_to_save),
    }
    for flag, given in reasons.items():
        if given:
            raise UserError(f"vLLM serves no adapter with {flag}: take --serve.mode merged, or leave it out")
    if rank_as_saved(settings) > RANKS[-1]:
        raise UserError(f"vLLM serves adapters up to rank {RANKS[-1]}, and this one has {rank_as_saved(settings)}: lower --lora.r, or take --serve.mode merged")  # fmt: skip


def check_start(settings: Settings) -> None:
    """Refuse an earlier adapter of another shape than the one that the settings ask for.

    Raises:
        UserError: names what differs.
    """
    folder = paths.data_file(settings.lora.start_from or "")
    try:
        theirs = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if not isinstance(theirs, dict):
            raise ValueError("adapter_config.json is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--lora.start_from {paths.label(folder)} holds no adapter ({error})") from error
    if not (folder / WEIGHTS).exists():
        raise UserError(f"--lora.start_from {paths.label(folder)} has no {WEIGHTS}")
    manifest.check_seal(folder)
    if settings.lora.init_lora_weights.startswith(CONVERTED):
        raise UserError(
            f"--lora.start_from gives the first weights: leave out --lora.init_lora_weights {settings.lora.init_lora_weights}"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if theirs.get(key):
            raise UserError(f"--lora.start_from {paths.label(folder)} sets {key}, which no training here does")
    ours = settings.lora.model_dump()
    for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
        if ours[key] != theirs.get(key, False):
            raise UserError(f"--lora.{key} is {ours[key]}, and the adapter to start from has {theirs.get(key)}: they must be equal")  # fmt: skip


def inspect(folder: Path, base: Path | None = None) -> Route:
    """Whether vLLM serves an adapter that is on disk, trained here or elsewhere, or only the merged model.

    Args:
        folder: holds adapter_model.safetensors and adapter_config.json.
        base: the folder of its base; where not given, that of the adapter's manifest.

    Raises:
        UserError: it cannot be merged either: damaged, without effect, of another kind, or of another base.
    """
    from lockstep import adapterfile, merging

    base = base or Model.model_validate(manifest.read(folder).config["model"]).folder
    adapter = adapterfile.read(folder)
    merging.plan(base, adapter)
    architectures = json.loads((base / "config.json").read_text(encoding="utf-8")).get("architectures") or ["?"]
    config = adapterfile.read_config(folder)
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])  # vLLM asks no further
    if reason := _only_merged(adapter, architectures[0], rank):
        return Route("merged", reason, None)
    bucket = next(known for known in RANKS if known >= rank)
    return Route("lora", f"plain LoRA of rank {rank}, which vLLM adds to {architectures[0]}", bucket)


def _only_merged(adapter: "Adapter", architecture: str, rank: int) -> str | None:
    """Why vLLM does not serve this adapter as one, or None."""
    whole = [*adapter.whole, *adapter.embeddings]
    ends = [name for name in adapter.low_rank if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    modules = {name.removesuffix(".weight").rpartition(".")[2] for name in adapter.low_rank}
    known = BASES.get(architecture, frozenset())
    reasons = {
        "it is DoRA, which vLLM does not serve": any(one.magnitude is not None for one in adapter.low_rank.values()),
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
