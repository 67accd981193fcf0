"""Which modules of a network take a LoRA adapter: linear layers that text passes through."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers.pytorch_utils import Conv1D

from lockstep.errors import UserError
from lockstep.model import experts, networks

# Parts of module names that all-linear leaves out. Routers choose experts, and a choice has no gradient but through its
# weights; indexers choose positions, and have none at all.
CHOOSING = ("gate", "router", "shared_expert_gate", "modality_router", "indexer")


def modules_of(network: Any, names: Sequence[str]) -> list[str]:
    """Full names of the modules that `lora.target_modules` asks for, or the names as they are given.

    Args:
        names: all-linear alone: every linear layer of the decoder but routers and the output layer; otherwise endings
            of modules' names. Where they fit modules that text never reaches, too, only the others are taken.

    Raises:
        UserError: a name fits no module, or the layers are of a kind that cannot be merged here.
    """
    modules = dict(network.named_modules())
    of_text = networks.text_modules(network)
    if tuple(names) == ("all-linear",):
        targets = [name for name in _linear(network) if name in of_text]
    else:
        targets = [name for name in modules if f".{name}".endswith(tuple(f".{ending}" for ending in names))]
    for ending in names if tuple(names) != ("all-linear",) else ():
        matching = [name for name in targets if f".{name}".endswith(f".{ending}")]
        if not matching:
            raise UserError(f"--lora.target_modules: {ending} is not found in the model{_hint(network)}")
        if not of_text & set(matching):
            raise UserError(f"--lora.target_modules: {matching[0]} takes no part in text, and would not be trained")
    if transposed := [name for name in targets or modules if isinstance(modules[name], Conv1D)]:
        raise UserError(
            f"--method qlora and lora: {transposed[0]} of this model is a Conv1D, whose weight is stored transposed, "
            f"and only linear layers take adapters here: --method full trains such a model"
        )
    if not targets:
        raise UserError("--lora.target_modules all-linear: the model has no linear layers that text passes through")
    if tuple(names) == ("all-linear",) or set(targets) - of_text:
        return [name for name in targets if name in of_text]
    return list(names)


def _linear(network: Any) -> Iterator[str]:
    """The linear layers that all-linear means; the output layer apart, which keeps its precision."""
    modules = dict(network.named_modules())
    for name, module in modules.items():
        if not networks.is_plain_linear(module) or module is network.get_output_embeddings():
            continue
        if (
            name.endswith(networks.CLAMPED)
            or set(CHOOSING) & set(name.split("."))
            or networks.is_inside_mamba(network, name)
        ):
            continue
        yield name


def _hint(network: Any) -> str:
    """Where layers may be that are no modules."""
    names = [name for name, _ in experts.stacks(network)]
    if not names:
        return ""
    return f"; experts are parameters here ({names[0]}): all-linear and --lora.target_parameters adapt them"
