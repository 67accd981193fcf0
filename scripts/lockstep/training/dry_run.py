"""The dry run: before the first step, in seconds, what would fail later.

The adapter is planned against the base as the merge will do it, and against what vLLM serves, if it is to be served as
an adapter. Then a few short rows pass through the network and back: they must give finite numbers, every adapted layer
a gradient, and the fast pass of adapters what PEFT's own gives. `row_isolation` has the tests of who sees whom.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.artifacts import atomic, filenames
from lockstep.data.collator import Collator
from lockstep.errors import UserError, is_out_of_memory
from lockstep.model import merge_plan, peft_adapter, vllm_support
from lockstep.model.checkpoint_names import CheckpointNames
from lockstep.settings.tree import Settings
from lockstep.training import loss, packed_attention, probes, row_isolation
from lockstep.training.fast_lora import FastPass
from lockstep.training.probes import in_mode, unchanged_randomness

Gradients = dict[str, Tensor | None]

CLOSE, ROUGH = 1e-3, 0.2  # of the gradients' norm, between two ways to compute them: in float32, and in other dtypes
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)
LONG = 512  # tokens, where short rows do not reach all layers: some attention compresses blocks of up to 128 tokens
MOST_LEFT_OUT = 0.25  # of the layers that all-linear adapts
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Findings:
    """What a dry run found.

    Attributes:
        nats: the loss of its rows a token.
        adapted: how many parts have an adapter, or are trained whole.
        left_out: modules that all-linear would adapt and that no token reaches; they have no adapter now.
        slow: why PEFT's own pass computes the adapters where a fast one was there; None where nothing was wrong.
    """

    nats: float
    adapted: int
    left_out: tuple[str, ...] = ()
    slow: str | None = None


def check_plan(settings: Settings, model: Any, names: CheckpointNames) -> None:
    """Plan the merge of a fresh adapter, and how it will be served.

    Args:
        model: of PEFT's.
        names: of the base's checkpoint.

    Raises:
        UserError: a name or shape that the base lacks; an adapter that vLLM serves merged only.
    """
    adapter = peft_adapter.as_saved(model)
    try:
        merge_plan.plan_merge(settings.model.folder, adapter, names)
    except UserError as error:
        raise UserError(
            f"what would be trained could not be merged: {error}; choose other --lora.target_modules"
        ) from error
    if settings.serve.mode == "lora":
        config = atomic.read_json(settings.model.folder / filenames.CONFIG)
        reason = vllm_support.only_merged(adapter, config, vllm_support.rank_as_saved(settings))
        if reason:
            raise UserError(
                f"--serve.mode lora: vLLM would not serve this adapter as one, as {reason}: take --serve.mode merged, "
                f"or other lora settings"
            )


def check_passes(
    settings: Settings, model: Any, network: Any, fast: FastPass | None, train: Any
) -> tuple[FastPass | None, Findings]:
    """Pass a few rows through the network and back, as training does.

    Args:
        model: what is trained; `network` is the transformers model inside.
        fast: the adapters' fast pass, where there is one.
        train: the data set, whose longest row says what training will reach.

    Returns:
        the pass to go on with: PEFT's own takes the place of the fast one where that fails or computes something else.

    Raises:
        UserError: no pass succeeds, numbers are not finite, an adapted layer takes no part, what is predicted depends
            on later tokens.
    """
    slow: str | None = None
    left_out: tuple[str, ...] = ()
    with unchanged_randomness(network):
        try:
            nats, gradients = _pass(network, training=True)
        except FAILURES as error:
            if is_out_of_memory(error) or not (fast and fast.layers):
                raise _failed(network, error) from error
            slow = f"the fast pass fails with {_one_line(error)}"
            fast = _rebuilt(model, fast, layers=False)
            try:
                nats, gradients = _pass(network, training=True)
            except FAILURES as again:
                raise _failed(network, again) from again
        _require_finite(settings, nats, gradients)
        row_isolation.require_causal(network)
        if settings.method != "full" and (lost := _without_gradient(network, gradients, train)):
            left_out = _left_out(settings, model, lost)
            fast = fast and _rebuilt(model, fast, layers=fast.layers > 0)
        if fast and fast.layers and (gap := _gap(network, fast)):
            slow = f"the fast pass differs from PEFT's own by {gap}"
            fast = _rebuilt(model, fast, layers=False)
    return fast, Findings(nats, len(peft_adapter.trained_parts(network)), left_out, slow)


def _rebuilt(model: Any, fast: FastPass, layers: bool) -> FastPass:
    """The fast pass of what is adapted now.

    Args:
        layers: of linear layers, too, and not of experts alone.
    """
    fast.undo(model)
    return FastPass(model, layers)


def _pass(network: nn.Module, training: bool, length: int | None = None) -> tuple[float, Gradients]:
    """The loss of a few padded rows in nats a token, and the gradient of their sum by each trained weight, or None."""
    rows = probes.probe_rows(network, length=length)
    if probes.has_experts(network):  # enough tokens to reach most experts
        rows += probes.probe_rows(network, 1, length)
    batch = probes.on_device(network, Collator(0)(rows))
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    own = packed_attention.plain(network)
    with packed_attention.implementation(network, own), in_mode(network, training):
        total, count = loss.loss_sum(network, batch)
        gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return total.item() / count, dict(zip(weights, gradients, strict=True))


def _require_finite(settings: Settings, nats: float, gradients: Gradients) -> None:
    """Refuse a training whose first numbers are no numbers."""
    if not math.isfinite(nats):
        what = f"the loss is {nats}"
    elif wrong := [name for name, gradient in gradients.items() if gradient is not None and not _finite(gradient)]:
        what = f"the gradient of {wrong[0]} is not finite"
    else:
        return
    other = "" if settings.train.dtype == "float32" else "set --train.dtype float32, or "
    raise UserError(
        f"before the first step, {what}: the base overflows, or its files are damaged; {other}choose another"
    )


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _without_gradient(network: nn.Module, gradients: Gradients, train: Any) -> list[str]:
    """Adapted or trained parts that a training would not change: no token reaches them, or kernels pass them by."""

    def lost(gradients: Gradients) -> list[str]:
        return [
            part
            for part, names in peft_adapter.trained_parts(network).items()
            if not any(gradient is not None and gradient.any() for gradient in map(gradients.get, names))
        ]

    if not (parts := lost(gradients)):
        return []
    longest = max(len(ids) for ids in train["input_ids"])
    of_longer_rows = lost(_pass(network, training=True, length=max(1, min(LONG, longest) - probes.SHARED))[1])
    return [part for part in parts if part in of_longer_rows]


def _left_out(settings: Settings, model: Any, lost: list[str]) -> tuple[str, ...]:
    """Take the adapters of these parts away, where all-linear put them there; otherwise refuse them by name."""
    parts = peft_adapter.trained_parts(model.base_model.model)
    automatic = settings.lora.target_modules == ("all-linear",) and not settings.lora.start_from
    if automatic and len(lost) <= MOST_LEFT_OUT * len(parts) and peft_adapter.are_layers(model, lost):
        peft_adapter.leave_out(model, lost)
        return tuple(lost)
    rest = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    endings = _endings(parts.keys() - set(lost), lost)
    advice = f"--lora.target_modules {','.join(endings)}" if endings else "other --lora.target_modules"
    raise UserError(
        f"{len(lost)} of {len(parts)} adapted modules get no gradient, so they would not be trained: "
        f"{', '.join(lost[:SHOWN])}{rest}; leave them out: {advice}"
    )


def _endings(kept: Iterable[str], lost: Iterable[str]) -> list[str]:
    """The shortest endings that name all the modules that are kept and none that is lost; none where they are many."""
    for parts in (1, 2):
        mine, others = ({".".join(name.split(".")[-parts:]) for name in names} for names in (kept, lost))
        if not mine & others:
            return sorted(mine) if len(mine) <= 16 else []
    return []


def _gap(network: nn.Module, fast: FastPass) -> str | None:
    """How the fast pass differs from PEFT's own by more than rounding, or None. Without dropout, whose masks differ."""
    ours, gradients = _pass(network, training=False)
    with fast.suspended():
        theirs, own_gradients = _pass(network, training=False)
    bound = CLOSE if row_isolation.computes_in(network) in (torch.float32, torch.float64) else ROUGH
    if not abs(ours - theirs) <= bound * abs(theirs):
        return f"its loss, {ours:.4f} and not {theirs:.4f}"
    apart = norm = 0.0
    for name, gradient in gradients.items():
        own = own_gradients[name]
        if (gradient is None) != (own is None):
            return f"a gradient at {name} that only one of them has"
        if gradient is not None and own is not None:
            apart += (gradient.double() - own.double()).square().sum().item()
            norm += own.double().square().sum().item()
    if not apart <= bound**2 * norm:
        return f"{math.sqrt(apart / norm) if norm else math.inf:.0%} of the gradients' norm"
    return None


def _failed(network: nn.Module, error: BaseException) -> UserError:
    """What to say of a pass that fails."""
    if is_out_of_memory(error):
        return UserError(
            "out of memory in a pass of three short rows, before the first step: choose a smaller base, a smaller "
            "--lora.r, or --method qlora"
        )
    return UserError(f"{type(network).__name__} cannot be trained here: its first pass fails with {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
