"""An adapter's folder as somebody's tool wrote it: what acts, and what would be left out in silence.

`lockstep/model/adapter_files.py` refuses whatever it cannot merge exactly. Here the rest is looked at, too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model import adapter_files
from lockstep.model.adapter_delta import AdapterDelta
from lockstep.model.adapter_files import PREFIX
from lockstep.model.checkpoint_names import CheckpointNames

TIED_ENDS = ("lm_head.weight", "embed_tokens.weight")


@dataclass(frozen=True)
class AdapterContents:
    """What an adapter's files hold.

    Attributes:
        config: adapter_config.json.
        delta: what acts, by the base's names in memory.
        silent: modules whose update is zero.
        odd: names that do not begin as PEFT's do, or that no module of the base has, as the file spells them.
        not_finite: names of tensors with infinities or no numbers.
        absent: modules that the config targets, and for which the file holds nothing.
        linear: all linear layers of the base, by their weights' names.
        problem: why it cannot be computed with; empty where it can.
    """

    config: dict[str, Any]
    delta: AdapterDelta = field(default_factory=AdapterDelta)
    silent: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    problem: str = ""


def read(folder: Path, names: CheckpointNames | None) -> AdapterContents:
    """An adapter's contents.

    Args:
        names: of the base; None where no base is given.

    Raises:
        UserError: it is no adapter, its weights cannot be read, or it belongs to another base.
    """
    config = adapter_files.read_config(folder)
    state = adapter_files.load_tensors(folder)
    if not state:
        return AdapterContents(config, problem="it holds no tensors")
    not_finite = sorted(name for name, tensor in state.items() if not tensor.isfinite().all())
    odd = {name for name in state if not name.startswith(PREFIX)}
    state = _prefixed(state)
    silent = _silent(state)
    acting = {name: tensor for name, tensor in state.items() if name.split(".lora_")[0] not in silent}
    contents = AdapterContents(
        config,
        silent=tuple(sorted(module.removeprefix(PREFIX) for module in silent)),
        odd=tuple(sorted(odd)),
        not_finite=tuple(not_finite),
    )
    if not_finite:
        return replace(contents, problem=f"{not_finite[0]} holds values that are not finite")
    if not acting:
        return contents
    try:
        adapter_files.refuse_unsupported(config)
        delta = adapter_files.of_tensors(acting, config)
    except UserError as error:
        return replace(contents, problem=str(error))
    return replace(contents, delta=delta) if names is None else _on_base(folder, contents, delta, names)


def _prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with PEFT's prefix before all names, so that what they are can be seen."""
    return {name if name.startswith(PREFIX) else PREFIX + _bare(name): tensor for name, tensor in state.items()}


def _bare(name: str) -> str:
    for start in ("base_model.", "_orig_mod.", "module."):
        name = name.removeprefix(start)
    return name


def _silent(state: Mapping[str, Tensor]) -> set[str]:
    """The modules with a low-rank update of which a factor is zero."""
    factors: dict[str, list[bool]] = {}
    for name, tensor in state.items():
        if ".lora_A" in name or ".lora_B" in name or ".lora_embedding_" in name:
            factors.setdefault(name.split(".lora_")[0], []).append(bool(tensor.any()))
    return {module for module, acting in factors.items() if not all(acting)}


def _on_base(folder: Path, contents: AdapterContents, delta: AdapterDelta, names: CheckpointNames) -> AdapterContents:
    """The contents by the base's names, and what of them the base lacks.

    Raises:
        UserError: the adapter belongs to another base.
    """
    known = {*names.shapes, *names.tied, *names.tied.values()}
    spelled = _renamings(delta.names, known, names)
    lost = sorted(name for name in delta.names if name not in spelled)
    base = names.network.config._name_or_path or "the base"
    if lost and not spelled and not any(name in names.tensors for name in lost):
        raise UserError(f"--adapter {paths.label(folder)} belongs to another base: {lost[0]} is not in {base}")
    if lost and all(name in names.tensors for name in lost):
        problem = f"{lost[0]} is a single expert's, which the base holds as a part of a stack"
        return replace(contents, delta=delta, problem=problem, linear=_linear(names))
    delta = _renamed(delta.without(lost), {name: new for name, (new, _) in spelled.items()})
    for name in sorted(delta.names):
        shape = names.shapes.get(name) or names.shapes.get(dict(names.tied).get(name, ""), ())
        update = delta.low_rank.get(name)
        if shape and name not in delta.embeddings and update is not None and not update.fits(shape):
            shaped = "×".join(map(str, shape))
            raise UserError(f"--adapter {paths.label(folder)} belongs to another base: {name} is {shaped} there")
    guessed = sorted(name for name, (_, is_guess) in spelled.items() if is_guess)
    linear = _linear(names)
    absent = () if lost or guessed else _absent(folder, contents, delta, names)
    return replace(
        contents, delta=delta, odd=tuple(dict.fromkeys([*contents.odd, *lost, *guessed])), linear=linear, absent=absent
    )


def _renamings(wanted_names: Iterable[str], known: set[str], names: CheckpointNames) -> dict[str, tuple[str, bool]]:
    """Each name → the base's own, and whether that was guessed by its ending; names that fit nowhere are left out.

    Names of the files are those of transformers 4: PEFT translates them as it reads an adapter.
    """
    on_disk = {
        group.tensors[0]: parameter for group in names.groups if group.is_plain for parameter in group.parameters
    }
    by_ending: dict[str, list[str]] = {}
    for name in known:
        parts = name.split(".")
        for start in range(1, len(parts) - 1):
            by_ending.setdefault(".".join(parts[start:]), []).append(name)
    spelled = {}
    for name in wanted_names:
        if name in known:
            spelled[name] = name, False
        elif name in on_disk:
            spelled[name] = on_disk[name], False
        elif guess := _by_ending(name, by_ending, known):
            spelled[name] = guess, True
    return spelled


def _by_ending(name: str, by_ending: Mapping[str, list[str]], known: set[str]) -> str | None:
    """The only name of the base that ends as this one does, from a layer's number on."""
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if first is None or first == 0:
        return None
    for start in range(first):
        ending = ".".join(parts[start:])
        if ending in known:
            return ending
        if len(matches := by_ending.get(ending, [])) == 1:
            return matches[0]
    return None


def _renamed(delta: AdapterDelta, new: Mapping[str, str]) -> AdapterDelta:
    return replace(
        delta,
        low_rank={new[name]: part for name, part in delta.low_rank.items()},
        whole={new[name]: part for name, part in delta.whole.items()},
        rows={new[name]: part for name, part in delta.rows.items()},
        embeddings={new[name]: part for name, part in delta.embeddings.items()},
    )


def _linear(names: CheckpointNames) -> tuple[str, ...]:
    from torch import nn

    layers = [f"{path}.weight" for path, module in names.network.named_modules() if isinstance(module, nn.Linear)]
    return tuple(name for name in layers if name in names.shapes and not name.endswith(TIED_ENDS))


def _absent(folder: Path, contents: AdapterContents, delta: AdapterDelta, names: CheckpointNames) -> tuple[str, ...]:
    """Modules that PEFT would adapt by this config, and for which the file holds no update, as one cut in part."""
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = contents.config.get("target_modules")
    if not targets or targets == "all-linear":
        return ()
    config = PeftConfig.from_pretrained(str(folder))
    held = {*delta.low_rank, *(f"{module}.weight" for module in contents.silent)}
    linear = _linear(names)
    missing = [
        name for name in linear if name not in held and check_target_module_exists(config, name[: -len(".weight")])
    ]
    return tuple(missing)


def trained_quantized(folder: Path | None, contents: AdapterContents) -> bool | None:
    """Whether an adapter was trained on 4-bit weights: by a run's record, or the name of its base; else None."""
    record = folder / filenames.BASE_TENSORS if folder else None
    if record and record.exists():
        return bool(atomic.read_json(record).get("dequantized"))
    named = str(contents.config.get("base_model_name_or_path") or "").lower()
    return True if named.endswith(("-4bit", "-bnb-4bit")) else None
