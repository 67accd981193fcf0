"""What vLLM can serve of a training's result, checked before the training and not after it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.errors import UserError
from lockstep.model import vllm_table
from lockstep.settings.tree import Settings

if TYPE_CHECKING:
    from lockstep.model.adapter_delta import AdapterDelta

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # for vLLM's --max-lora-rank; an adapter takes the next larger one
CONVERTED = ("pissa", "olora")  # initialisations that change the base; saved as a plain adapter of twice the rank


def rank_as_saved(settings: Settings) -> int:
    """The rank of the adapter's files."""
    return settings.lora.r * (2 if settings.lora.init_lora_weights.startswith(CONVERTED) else 1)


def check(settings: Settings) -> None:
    """Refuse a training whose result could not be served the way the settings say.

    Raises:
        UserError: names the setting, the reason and the way out.
    """
    if settings.method == "full":
        _check_full(settings)
        return
    _check_initialisation(settings)
    if settings.serve.mode == "lora":
        _check_served_as_adapter(settings)


def _check_full(settings: Settings) -> None:
    if settings.serve.mode == "lora":
        raise UserError(
            "--method full makes no adapter, so --serve.mode lora has nothing to serve: take --serve.mode merged"
        )
    if settings.lora.start_from or settings.lora.loraplus_lr_ratio:
        raise UserError("--method full trains no adapter: drop the lora settings")


def _check_initialisation(settings: Settings) -> None:
    start = settings.lora.init_lora_weights
    if settings.method == "qlora" and start.startswith(CONVERTED):
        raise UserError(
            f"--lora.init_lora_weights {start} takes its beginning out of the base, which a 4-bit base cannot hold "
            "exactly: what is trained could not be served; take --method lora"
        )
    if settings.method == "qlora" and start == "orthogonal":
        raise UserError("--lora.init_lora_weights orthogonal: PEFT cannot begin so on a 4-bit base; take --method lora")


def _check_served_as_adapter(settings: Settings) -> None:
    for flag, given in (
        ("--lora.use_dora", settings.lora.use_dora),
        ("--lora.modules_to_save", settings.lora.modules_to_save),
    ):
        if given:
            raise UserError(f"vLLM serves no adapter with {flag}: take --serve.mode merged, or leave it out")
    rank = rank_as_saved(settings)
    if rank > RANKS[-1]:
        raise UserError(
            f"vLLM serves adapters up to rank {RANKS[-1]}, and this one has {rank}: "
            "lower --lora.r, or take --serve.mode merged"
        )


def check_start(settings: Settings) -> None:
    """Refuse an earlier adapter of another shape than the one that the settings ask for.

    Raises:
        UserError: names what differs.
    """
    folder = paths.data_file(settings.lora.start_from or "")
    setting = f"--lora.start_from {paths.label(folder)}"
    theirs = _read_config(folder, setting)
    if not (folder / filenames.ADAPTER_WEIGHTS).exists():
        raise UserError(f"{setting} has no {filenames.ADAPTER_WEIGHTS}")
    manifest.check_seal(folder)
    start = settings.lora.init_lora_weights
    if start.startswith(CONVERTED):
        raise UserError(f"--lora.start_from gives the first weights: leave out --lora.init_lora_weights {start}")
    for key in ("rank_pattern", "alpha_pattern"):
        if theirs.get(key):
            raise UserError(f"{setting} sets {key}, which no training here does")
    ours = settings.lora.model_dump()
    for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
        if ours[key] != theirs.get(key, False):
            raise UserError(
                f"--lora.{key} is {ours[key]}, and the adapter to start from has {theirs.get(key)}: they must be equal"
            )


def _read_config(folder: Path, setting: str) -> dict[str, Any]:
    try:
        config = atomic.read_json(folder / filenames.ADAPTER_CONFIG)
        if not isinstance(config, dict):
            raise ValueError(f"{filenames.ADAPTER_CONFIG} is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{setting} holds no adapter ({error})") from error
    return config


def only_merged(adapter: "AdapterDelta", config: Mapping[str, Any], rank: int) -> str | None:
    """Why vLLM does not serve an adapter as one, or None.

    Args:
        config: its base's config.json.
        rank: the largest of its modules.
    """
    whole = [*adapter.whole, *adapter.embeddings]
    reasons = {
        "it is DoRA, which vLLM does not serve": any(part.magnitude is not None for part in adapter.low_rank.values()),
        f"it holds {min(whole, default='')} whole, and vLLM serves low-rank updates only": bool(whole),
        f"it has modules_to_save {', '.join(adapter.modules_to_save)}, which vLLM does not serve": bool(
            adapter.modules_to_save
        ),
        f"it has bias {adapter.bias}, which vLLM does not serve": adapter.bias != "none",
        "it holds rows of an embedding, and vLLM serves low-rank updates only": bool(adapter.rows),
        f"it has rank {rank}, and vLLM serves up to {RANKS[-1]}": rank > RANKS[-1],
    }
    return next((reason for reason, holds in reasons.items() if holds), None) or _unserved_layer(
        list(adapter.low_rank), config
    )


def _unserved_layer(updated: Sequence[str], config: Mapping[str, Any]) -> str | None:
    """Why vLLM does not add low-rank updates to these parameters of a base, or None."""
    architecture, served = vllm_table.architecture_of(config), vllm_table.of(config)
    layers = served.layers if served else frozenset()
    from lockstep.model import networks  # torch takes seconds

    ends = [name for name in updated if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    experts = [name for name in updated if not name.endswith(".weight")]  # parameters that hold all experts of a layer
    modules = {name.removesuffix(".weight").rpartition(".")[2] for name in updated}
    reasons = {
        f"it changes {min(ends, default='')}, where vLLM takes no adapter of most models": bool(ends),
        f"vLLM is not known to take adapters of {architecture}": not layers,
        f"it changes {min(experts, default='')}, and vLLM's adapters of experts were not tried": bool(experts),
        f"it changes {min(modules - layers, default='')}, where vLLM takes no adapter": bool(modules - layers),
        f"beside adapters vLLM computes the experts of {architecture} with Triton, which needs a GPU": (
            vllm_table.has_experts(config) and networks.device() == "cpu"
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
