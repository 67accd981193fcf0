"""What vLLM can serve of a training's result: asked before the training, not after it."""

from typing import TYPE_CHECKING

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.errors import UserError
from lockstep.settings.tree import Settings

if TYPE_CHECKING:
    pass

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's --max-lora-rank; an adapter fits into the next larger
CONVERTED = ("pissa", "olora")  # beginnings that change the base; saved as a plain adapter of twice the rank
# Bases whose layers vLLM 0.32 can add adapters to, and the names of those layers.
LAYERS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
BASES = {
    **dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM",
                     "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GraniteForCausalLM"), LAYERS),
    "Phi3ForCausalLM": frozenset({"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
}  # fmt: skip


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
        theirs = atomic.read_json(folder / filenames.ADAPTER_CONFIG)
        if not isinstance(theirs, dict):
            raise ValueError("adapter_config.json is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--lora.start_from {paths.label(folder)} holds no adapter ({error})") from error
    if not (folder / filenames.ADAPTER_WEIGHTS).exists():
        raise UserError(f"--lora.start_from {paths.label(folder)} has no {filenames.ADAPTER_WEIGHTS}")
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
