"""Which weights are these? A merged folder by what each of its tensors is, and the verdict on them all."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lockstep import paths
from lockstep.errors import UserError
from lockstep.model import checkpoint_names, merge_plan
from lockstep.model.adapter_delta import AdapterDelta
from lockstep.processes import busy
from lockstep.verification import adapter_contents, weights_account
from lockstep.verification.adapter_contents import AdapterContents
from lockstep.verification.tensor_reader import ParameterReader, TensorReader
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof
from lockstep.verification.weights_account import BASE, MISSING, OTHER, SCALED, TRAINED, UNSEEN, Standing

SAME_SCALE = 0.05  # how far the scales of tensors may be apart that were scaled alike, relative
KEPT = 0.5  # of the change, that rounding to the stored dtype must leave
TOTAL = 0.03  # how far the change of all tensors together may be from the expected one, relative
SHOWN = 4  # names in a list


def of_merged(base: Path, merged: Path, contents: AdapterContents | None, adapter: Path | None) -> Proof:
    """Hold a merged folder against its base and what was trained.

    Args:
        contents: of the adapter; None where none is given.

    Raises:
        UserError: a folder's files cannot be read, or the adapter belongs to another base.
    """
    names, stored_names = checkpoint_names.of_folder(base), checkpoint_names.of_folder(merged)
    delta = contents.delta if contents else AdapterDelta()
    try:
        plan = merge_plan.plan_merge(base, delta, names)
    except UserError as error:
        return Proof(
            UNKNOWN, {}, None, f"what should be merged is not known: {error}", "save the adapter again with PEFT"
        )
    with TensorReader(base) as base_reader, TensorReader(merged) as stored_reader:
        readers = ParameterReader(names, base_reader), ParameterReader(stored_names, stored_reader)
        walk = weights_account.standings(plan, *readers)
        what = f"comparing {paths.label(merged)} with what base and adapter give"
        account = dict(busy.steps(walk, what, len(plan.shapes), "tensors"))
    figures = _figures(account)
    if contents and contents.problem:
        text = f"the adapter cannot be computed with: {contents.problem}"
        return Proof(UNKNOWN, figures, None, text, "save it again with PEFT")
    if contents is None:
        return _without_adapter(account, figures, base)
    return _judged(account, figures, contents, adapter_contents.trained_quantized(adapter, contents))


def _figures(account: Mapping[str, Standing]) -> dict[str, Any]:
    touched = [standing for standing in account.values() if standing.touched]
    counts = Counter(standing.kind for standing in touched)
    totals = {name: sum(getattr(standing.fit, name) for standing in touched) for name in ("dd", "gd", "rd", "rd16")}
    nearest = min((totals["rd"], totals["rd16"]), key=lambda rd: abs(totals["gd"] - rd))
    return {
        "tensors": len(account),
        "elements": sum(standing.fit.elements for standing in account.values()),
        "changed_by_adapter": len(touched),
        "trained": counts[TRAINED],
        "unseen": counts[UNSEEN],
        "base": counts[BASE],
        "scaled": counts[SCALED],
        "other": sum(standing.kind in (OTHER, MISSING) for standing in account.values()),
        "dequantized": sum(standing.dequantized for standing in account.values()),
        "share_trained": _rounded((counts[TRAINED] + counts[UNSEEN]) / len(touched)) if touched else None,
        "scale": _rounded(totals["gd"] / totals["dd"]) if totals["dd"] else None,
        "kept_by_rounding": _rounded(nearest / totals["dd"]) if totals["dd"] else None,
        "share_of_expected": _rounded(totals["gd"] / nearest) if nearest > 0 else None,
    }


def _rounded(value: float) -> float:
    return round(value, 4) if math.isfinite(value) else 0.0


def _without_adapter(account: Mapping[str, Standing], figures: dict[str, Any], base: Path) -> Proof:
    different = [name for name, standing in account.items() if standing.kind != BASE]
    if not different:
        return Proof(
            FAILED, figures, "base", f"every tensor is that of {paths.label(base)}: nothing was merged into it",
            "merge the adapter, and serve what comes of it",
        )  # fmt: skip
    share = len(different) / len(account)
    return Proof(
        UNKNOWN, figures, None,
        f"{len(different)} of {len(account)} tensors ({share:.0%}) differ from the base's, the first is {different[0]}",
        "give --adapter: without it nothing says how they should differ",
    )  # fmt: skip


def _judged(
    account: Mapping[str, Standing], figures: dict[str, Any], contents: AdapterContents, quantized: bool | None
) -> Proof:
    """The verdict over all tensors, the gravest first."""
    touched = {name: standing for name, standing in account.items() if standing.touched}
    by_kind = {
        kind: [name for name, standing in touched.items() if standing.kind == kind] for kind in (TRAINED, BASE, SCALED)
    }
    wrong = {name: standing for name, standing in account.items() if standing.kind in (OTHER, MISSING)}
    right, base, scaled = by_kind[TRAINED], by_kind[BASE], by_kind[SCALED]
    if wrong:
        return _other(wrong, account, figures)
    if touched and not right and not scaled and not base:
        return _unseen(figures)
    if not right and not scaled:
        return Proof(
            FAILED, figures, "base", f"none of the {len(touched)} tensors that the adapter changes was changed: the "
            f"base's weights, {base[0] if base else 'all'} for one", "merge again, with the adapter loaded",
        )  # fmt: skip
    if scaled:
        return _scaled({name: touched[name] for name in scaled}, len(touched), base, figures, contents)
    if base:
        return _partial(base, touched, figures)
    return _all_trained(account, figures, quantized)


def _other(wrong: Mapping[str, Standing], account: Mapping[str, Standing], figures: dict[str, Any]) -> Proof:
    name, standing = next(iter(wrong.items()))
    text = f"{len(wrong)} of {len(account)} tensors are neither trained nor the base's: {name} {standing.why}"
    hint = "merge again from this base and this adapter, or give the base and the adapter that this was made of"
    not_finite = [name for name, each in wrong.items() if each.fit.not_finite]
    if not_finite:
        first = wrong[not_finite[0]]
        text = f"{not_finite[0]} {first.why}: larger than its dtype can hold"
        return Proof(FAILED, figures, "wrong_dtype", text, "merge and save in bfloat16 or float32")
    if all("rounded to" in each.why for each in wrong.values()):
        scales = [each.scale for each in wrong.values() if each.touched]
        kept = f"; {median(scales):.2f} of what was trained is left" if scales else ""
        text = f"{len(wrong)} of {len(account)} tensors: {name} {standing.why} after the merge{kept}"
        return Proof(FAILED, figures, "wrong_dtype", text, "save the merged model in 16 bits, and export it apart")
    return Proof(FAILED, figures, "other_weights", text, hint)


def _unseen(figures: dict[str, Any]) -> Proof:
    return Proof(
        FAILED, figures, "wrong_dtype", "what the adapter changes is smaller than the steps of the stored dtype: "
        "trained and base are the same numbers here", "save the merged model in float32, or serve the adapter itself",
    )  # fmt: skip


def _scaled(
    scaled: Mapping[str, Standing], touched: int, base: list[str], figures: dict[str, Any], contents: AdapterContents
) -> Proof:
    scales = [standing.scale for standing in scaled.values()]
    middle = median(scales)
    alike = all(abs(scale - middle) <= SAME_SCALE * abs(middle) for scale in scales)
    first = next(iter(scaled))
    if len(scaled) < touched:
        where = f"{len(scaled)} of {touched} tensors"
        middle = scaled[first].scale
    else:
        where = "all tensors"
    twice = alike and abs(middle - 2) <= SAME_SCALE * 2
    text = f"{where} hold {middle:.3g} times what was trained ({first})"
    if not twice and (why := _why_scaled(middle, contents.config)):
        text += f"; {why}"
    if not alike:
        text = f"{where} hold between {min(scales):.3g} and {max(scales):.3g} times what was trained ({first} for one)"
    hint = "merge once, into the base as published" if twice else "merge again with PEFT and the adapter's own config"
    return Proof(FAILED, figures, "twice" if twice else "scaled", text, hint)


def _why_scaled(scale: float, config: Mapping[str, Any]) -> str:
    """The setting of an adapter that a merge must have left out to come to a scale; empty where none explains it."""
    rank, alpha = config["r"], config["lora_alpha"]
    right = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    explanations = {
        1.0: "the merge left lora_alpha / r out",
        float(alpha): "the merge took lora_alpha for lora_alpha / r",
        alpha / rank: "the merge left use_rslora out",
        alpha / math.sqrt(rank): "the merge took use_rslora to be set",
    }
    for used, words in explanations.items():
        if abs(used / right - scale) <= 0.02 * abs(scale) and abs(used - right) > 0.02 * right:
            return words
    return ""


def _partial(base: list[str], touched: Mapping[str, Standing], figures: dict[str, Any]) -> Proof:
    kinds = Counter(name.rsplit(".", 2)[-2] for name in base)
    of_all = Counter(name.rsplit(".", 2)[-2] for name in touched)
    whole = [kind for kind, count in kinds.items() if count == of_all[kind]]
    which = f"none of {', '.join(whole[:SHOWN])} was" if whole and len(whole) == len(kinds) else f"{base[0]} was not"
    return Proof(
        FAILED, figures | {"base_tensors": base[:50]}, "partial",
        f"{len(base)} of {len(touched)} tensors that the adapter changes are the base's: {which} merged",
        "merge again, and look for warnings about keys or modules that were not loaded",
    )  # fmt: skip


def _all_trained(account: Mapping[str, Standing], figures: dict[str, Any], quantized: bool | None) -> Proof:
    share, kept = figures["share_of_expected"], figures["kept_by_rounding"]
    if share is not None and abs(share - 1) > TOTAL + _total_uncertainty(account):
        text = f"all tensors together hold {share:.3f} of the change that base and adapter give"
        return Proof(FAILED, figures, "scaled", text, "merge again with PEFT and the adapter's own config")
    if kept is not None and kept < KEPT:
        return Proof(
            FAILED, figures, "wrong_dtype", f"rounding to the stored dtype left {kept:.0%} of what the adapter changes",
            "save the merged model in float32, or serve the adapter itself",
        )  # fmt: skip
    if dequantized := figures["dequantized"]:
        if quantized is False:
            text = (
                f"base and adapter in one, on NF4 weights ({dequantized} tensors), and training used the original ones"
            )
            hint = "merge onto the original weights: the adapter was trained on those"
            return Proof(FAILED, figures, "merged_dequantized", text, hint)
        text = f"base and adapter in one, on NF4 weights ({dequantized} tensors): what QLoRA trains"
        return Proof(PASSED, figures, "merged_dequantized", text)
    text = f"base and adapter in one, on the original weights: all {len(account)} tensors"
    hint = ""
    if quantized:
        hint = "the adapter was trained on NF4 weights, and these differ from them: measure what that changes"
    return Proof(PASSED, figures, "merged_original", text, hint)


def _total_uncertainty(account: Mapping[str, Standing]) -> float:
    """Of the share of the change in all tensors together: three standard errors."""
    fits = [standing.fit for standing in account.values() if standing.touched and standing.fit.dd]
    noise = sum(fit.rounding * fit.dd / (3 * fit.elements) for fit in fits)
    return 3 * math.sqrt(noise) / sum(fit.dd for fit in fits)


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """What a model's weights are compressed with, by its config; None where they are plain."""
    settings = config.get("quantization_config") or config.get("compression_config")
    return settings.get("quant_method") or settings.get("format") or "unknown" if isinstance(settings, dict) else None
