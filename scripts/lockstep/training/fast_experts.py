"""The fast pass of adapters of experts: base and adapter in one pass, one matrix dequantized at a time.

PEFT's own pass makes all matrices of a layer whole, adds each expert's B · A to them, and has autograd keep the sums
until the backward pass: in 16 bits, of all layers.
"""

from typing import Any

from torch import Tensor, nn

from lockstep.model import experts, experts_adapter, experts_forward
from lockstep.model.peft_adapter import NAME


class FastExperts:
    """Computes the adapted experts of a model by `experts_forward`, and gives PEFT's own pass back on request.

    Attributes:
        wrappers: how many of PEFT's wrappers are computed so; a module with two adapted parameters has two.
        turns: whether threads must take turns, as the pass of some experts changes their modules while it runs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.own: list[tuple[Any, Any]] = []
        self.wrappers = 0
        for wrapper, chain in experts_adapter.wrappers(model):
            if _is_plain(wrapper.get_base_layer(), chain):
                self.own.append((wrapper, wrapper.forward))
                self.wrappers += len(chain)
                _replace(wrapper, chain)
        self.turns = any(
            experts.four_bit_in(module) and not experts.has_interface(module) for module in model.modules()
        )

    def undo(self) -> None:
        """PEFT's own forward pass again."""
        for wrapper, own in self.own:
            wrapper.forward = own
        self.own.clear()


def _replace(wrapper: Any, chain: dict[str, Any]) -> None:
    own, module = wrapper.forward, wrapper.get_base_layer()

    def forward(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        if wrapper.merged:
            return own(hidden, chosen, weights)  # type: ignore[no-any-return]
        adapters = {} if wrapper.disable_adapters else {leaf: _factors(layer) for leaf, layer in chain.items()}
        return experts_forward.forward(module, hidden, chosen, weights, adapters)

    wrapper.forward = forward


def _factors(layer: Any) -> experts_forward.Factors:
    return experts_forward.Factors(layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME])


def _is_plain(module: nn.Module, chain: dict[str, Any]) -> bool:
    """Whether each wrapper adds scale · B · A to the matrices of frozen experts, and nothing more."""
    matrices = {stack.leaf for stack in experts.stacks_in(module) if not stack.packed.requires_grad}
    return (
        experts.has_interface(module)
        and chain.keys() <= matrices
        and all(layer.active_adapters == [NAME] and not layer.lora_variant for layer in chain.values())
    )
