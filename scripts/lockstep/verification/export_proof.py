"""Is an export made of the trained model, and did what was trained survive its rounding?

A quantized weight is the trained one with noise of about the size of its format. That noise does not point in the
direction of what training changed. So the export's distance from the base, projected on the trained one's, is 1 where
the change survived, and 0 where the export is the base's, even if noise is many times as long as the change.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from lockstep import paths
from lockstep.model import checkpoint_names, merge_plan
from lockstep.model.adapter_delta import AdapterDelta
from lockstep.processes import busy
from lockstep.verification import export_weights, weight_fits
from lockstep.verification.adapter_contents import AdapterContents
from lockstep.verification.export_weights import ExportedWeights
from lockstep.verification.tensor_reader import ParameterReader, TensorReader
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof
from lockstep.verification.weight_fits import UNIT, Fit

SURVIVED = (0.8, 1.25)  # share of the change that is taken for the trained model's
LOST = 0.2  # share below which it is the base
LARGEST_ERROR = 0.35  # of a weight, relative; rounding to four bits makes 0.1
LEAST_SURE = 0.15  # three standard errors of a tensor's share, within which it counts


@dataclass(frozen=True)
class Share:
    """What an export's tensor holds of the change.

    Attributes:
        uncertainty: three standard errors of `value`.
        error: of the export as the trained weight, and as the base's, relative.
    """

    value: float
    uncertainty: float
    error: float
    base_error: float


def of_export(base: Path | None, merged: Path | None, export: Path, contents: AdapterContents | None) -> Proof:
    """Hold an export's weights against what was trained.

    Raises:
        UserError: its format is not known.
    """
    reference = base or merged
    if reference is None or (base is None and contents):
        text = "without the base or the merged model nothing says what the weights should be"
        return Proof(UNKNOWN, text=text, next="give --base and --adapter, or --base and --merged")
    names = checkpoint_names.of_folder(reference)
    exported = export_weights.read(export, names)
    delta = contents.delta if contents and not contents.problem else None
    if base is None or (delta is None and merged is None):
        return _without_training(reference, exported, names, export)
    fits: dict[str, Fit] = {}
    missing: list[str] = []
    with TensorReader(base) as reader:
        weights = ParameterReader(names, reader)
        for name, adapter in _changes(base, merged, delta, names):
            fit = _fit(name, weights, exported, adapter)
            if fit is None:
                missing.append(name)
            else:
                fits[name] = fit
    return _judged(fits, missing, exported.format, paths.label(export))


def _changes(
    base: Path, merged: Path | None, delta: AdapterDelta | None, names: Any
) -> Iterator[tuple[str, AdapterDelta]]:
    """Each parameter of the base, with what training made of it."""
    what = "comparing the export's weights"
    if delta is not None:
        plan = merge_plan.plan_merge(base, delta, names)
        for name in busy.steps(list(plan.shapes), what, unit="tensors"):
            yield name, plan.adapter
        return
    assert merged
    with TensorReader(merged) as reader:
        weights = ParameterReader(checkpoint_names.of_folder(merged), reader)
        for name in busy.steps(list(names.shapes), what, unit="tensors"):
            source = weights.source(name)
            if source is not None and weights.shapes[source] == names.shapes[name]:
                count = names.shapes[name][0] if names.shapes[name] else 1
                yield name, AdapterDelta(whole={name: weights.rows(source)(0, count)})


def _fit(name: str, weights: ParameterReader, exported: ExportedWeights, adapter: AdapterDelta) -> Fit | None:
    """How an exported parameter agrees, in the order of rows in which it does best; None where it is not there."""
    source = weights.source(name)
    if source is None:
        return None
    shape, best = weights.shapes[source], None
    for tensor in exported.candidates(name):
        if tuple(tensor.shape) != shape:
            continue
        fit = weight_fits.measure(name, shape, weights.rows(source), _rows(tensor), adapter, UNIT)
        if best is None or fit.residual < best.residual:
            best = fit
    return best


def _rows(tensor: Tensor) -> weight_fits.Rows:
    return lambda start, stop: tensor[start:stop]


def _share(fit: Fit) -> Share:
    uncertainty = 3 * math.sqrt(fit.rest / (fit.elements * fit.dd))
    size = fit.size or 1.0
    return Share(fit.scale, uncertainty, fit.relative_error, math.sqrt(fit.gg / size))


def _judged(fits: Mapping[str, Fit], missing: list[str], form: str, label: str) -> Proof:
    touched = {name: fit for name, fit in fits.items() if fit.dd}
    shares = {name: _share(fit) for name, fit in touched.items()}
    figures = _figures(fits, shares, missing, form)
    wrong = [name for name, fit in fits.items() if not fit.relative_error <= LARGEST_ERROR and fit.size]
    if not fits or len(missing) > len(fits):
        text = f"{label}: of {len(fits) + len(missing)} tensors {len(missing)} are not found in it"
        return Proof(UNKNOWN, figures, None, text, "give the export of this very base")
    if wrong and not _is_base(fits, wrong):
        text = f"{len(wrong)} of {len(fits)} tensors of {label} are others: {wrong[0]} is off by {_error(fits, wrong)}"
        return Proof(FAILED, figures, "other_weights", text, "export again from the merged model")
    if not shares:
        return Proof(UNKNOWN, figures, None, "nothing that the export holds was trained", "give the adapter")
    return _by_shares(shares, figures, form, label)


def _is_base(fits: Mapping[str, Fit], names: list[str]) -> bool:
    """Whether tensors that are far from the trained ones are near to the base's."""
    return all(math.sqrt(fits[name].gg / fits[name].size) <= LARGEST_ERROR for name in names)


def _error(fits: Mapping[str, Fit], names: list[str]) -> str:
    return f"{fits[names[0]].relative_error:.0%}"


def _figures(fits: Mapping[str, Fit], shares: Mapping[str, Share], missing: list[str], form: str) -> dict[str, Any]:
    total, uncertainty = _total(fits)
    return {
        "export_format": form,
        "export_tensors": len(fits),
        "export_missing": len(missing),
        "export_survived": round(total, 4),
        "export_survived_uncertainty": round(uncertainty, 4),
        "export_error": round(median(fit.relative_error for fit in fits.values()), 5) if fits else None,
        "export_error_as_base": round(median(share.base_error for share in shares.values()), 5) if shares else None,
        "export_lowest_share": round(min((share.value for share in shares.values()), default=0.0), 4),
    }


def _total(fits: Mapping[str, Fit]) -> tuple[float, float]:
    """The share of all tensors together that survived, and three standard errors of it."""
    touched = [fit for fit in fits.values() if fit.dd]
    length = sum(fit.dd for fit in touched)
    if not length:
        return 0.0, 0.0
    noise = sum(fit.rest * fit.dd / fit.elements for fit in touched)
    return sum(fit.gd for fit in touched) / length, 3 * math.sqrt(noise) / length


def _by_shares(shares: Mapping[str, Share], figures: dict[str, Any], form: str, label: str) -> Proof:
    total, uncertainty = figures["export_survived"], figures["export_survived_uncertainty"]
    sure = {name: share for name, share in shares.items() if share.uncertainty <= LEAST_SURE}
    lost = [name for name, share in sure.items() if share.value < LOST]
    if uncertainty > 0.5:
        text = f"the noise of {form} hides what was trained: {total:.2f} ± {uncertainty:.2f} of it is there"
        return Proof(UNKNOWN, figures, None, text, "ask the endpoint that serves it")
    if total < LOST + uncertainty and len(lost) * 2 >= len(sure):
        text = f"{label} holds {max(0.0, total):.0%} of what was trained: it is the base, in {form}"
        hint = "export from the merged model; a 4-bit format may round its change away: choose another"
        return Proof(FAILED, figures, "base", text, hint)
    if lost and len(lost) < len(sure):
        text = f"{len(lost)} of {len(sure)} trained tensors are the base's in {label}, {lost[0]} for one"
        return Proof(
            FAILED, figures | {"export_lost": lost[:50]}, "partial", text, "export again from the merged model"
        )
    if SURVIVED[0] - uncertainty <= total <= SURVIVED[1] + uncertainty:
        text = f"{form}, made of the trained model: {total:.1%} of what was trained is in its weights"
        return Proof(PASSED, figures, None, text)
    if abs(total - 2) <= 0.2:
        return Proof(FAILED, figures, "twice", f"{label} holds what was trained twice", "merge once, and export again")
    text = f"{label} holds {total:.2f} times what was trained"
    return Proof(FAILED, figures, "wrong_dtype" if total < 1 else "scaled", text, "choose a format with more bits")


def _without_training(reference: Path, exported: ExportedWeights, names: Any, export: Path) -> Proof:
    """Compare with one model alone: whether it is that one."""
    fits = {}
    with TensorReader(reference) as reader:
        weights = ParameterReader(names, reader)
        for name in busy.steps(list(names.shapes), "comparing the export's weights", unit="tensors"):
            if fit := _fit(name, weights, exported, AdapterDelta()):
                fits[name] = fit
    figures = _figures(fits, {}, [], exported.format)
    label = paths.label(reference)
    wrong = [name for name, fit in fits.items() if not fit.relative_error <= LARGEST_ERROR and fit.size]
    if wrong:
        text = (
            f"{len(wrong)} of {len(fits)} tensors are not those of {label}: {wrong[0]} is off by {_error(fits, wrong)}"
        )
        return Proof(FAILED, figures, "other_weights", text, "export again from the merged model")
    text = f"the weights of {paths.label(export)} are those of {label} within {figures['export_error'] or 0:.1%}"
    return Proof(UNKNOWN, figures, None, text, "give --base with --adapter or --merged: a base may be as near")
