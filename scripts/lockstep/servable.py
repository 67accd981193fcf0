"""What vLLM can serve of a training's result: asked before the training, not after it."""

import json

from lockstep import paths
from lockstep.config import Settings
from lockstep.errors import UserError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's --max-lora-rank; an adapter fits into the next larger
WEIGHTS = "adapter_model.safetensors"
CONVERTED = ("pissa", "olora")  # beginnings that change the base; saved as a plain adapter of twice the rank


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
    except (OSError, ValueError) as error:
        raise UserError(f"--lora.start_from {paths.label(folder)} holds no adapter ({error})") from error
    if not (folder / WEIGHTS).exists():
        raise UserError(f"--lora.start_from {paths.label(folder)} has no {WEIGHTS}")
    ours = settings.lora.model_dump()
    for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
        if ours[key] != theirs.get(key, False):
            raise UserError(f"--lora.{key} is {ours[key]}, and the adapter to start from has {theirs.get(key)}: they must be equal")  # fmt: skip


def inspect(folder):
    import json

    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    return next(known for known in RANKS if known >= rank)
