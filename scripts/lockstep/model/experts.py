"""Experts: parameters of three dimensions that hold one matrix for each expert, and their 4-bit form.

transformers 5 keeps all experts of a layer in one parameter, [experts, out, in] or, where the class says
`is_transposed`, [experts, in, out]. bitsandbytes quantizes linear layers only and leaves these alone. Here each
expert is quantized by itself, with bitsandbytes' own functions, so that one can be dequantized without the others.
The parameter stays readable under its name: torch's parametrization dequantizes it for whoever asks.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lockstep.settings.schema import Quantization

BLOCK = 64  # weights that share a scale
NESTED_BLOCK = 256  # scales that share one, where they are quantized as well


class FourBit(nn.Module):
    """The scales of a stack of 4-bit matrices; as a parametrization, it dequantizes the stack.

    Attributes:
        shape: of the stack, [experts, rows, columns].
        dtype: that the matrices are dequantized to.
        siblings: all parameters of the experts' module in the order of its class, which PEFT nests adapters in.
        scales, code, offsets, nested_scales, nested_code: what bitsandbytes keeps in a QuantState, for each expert.
    """

    scales: Tensor
    code: Tensor
    offsets: Tensor
    nested_scales: Tensor
    nested_code: Tensor

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, quantization: Quantization, on: torch.device) -> None:
        super().__init__()
        self.shape, self.dtype = torch.Size(shape), dtype
        self.siblings: tuple[str, ...] = ()
        self.quantization = quantization
        blocks = math.ceil(math.prod(shape[1:]) / BLOCK)
        self.nested = quantization.bnb_4bit_use_double_quant
        scales = torch.uint8 if self.nested else torch.float32
        self._keep("scales", torch.empty(shape[0], blocks, dtype=scales, device=on))
        self._keep("code", torch.empty(16, device=on))
        if self.nested:
            self._keep("offsets", torch.empty(shape[0], device=on))
            self._keep("nested_scales", torch.empty(shape[0], math.ceil(blocks / NESTED_BLOCK), device=on))
            self._keep("nested_code", torch.empty(256, device=on))

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def pack(self, number: int, matrix: Tensor) -> Tensor:
        """The packed weights [bytes] of one expert; its scales are kept here."""
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(
            matrix.contiguous(),
            blocksize=BLOCK,
            compress_statistics=self.nested,
            quant_type=self.quantization.bnb_4bit_quant_type,
        )
        self.scales[number] = state.absmax
        self.code.copy_(state.code)
        if self.nested:
            self.offsets[number] = state.offset
            self.nested_scales[number] = state.state2.absmax
            self.nested_code.copy_(state.state2.code)
        flat: Tensor = packed.flatten()
        return flat

    def expert(self, packed: Tensor, number: int) -> Tensor:
        """One expert's matrix [rows, columns], from the packed weights of all [experts, bytes]."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        nested = None
        if self.nested:
            nested = QuantState(
                absmax=self.nested_scales[number], code=self.nested_code, blocksize=NESTED_BLOCK, dtype=torch.float32
            )
        state = QuantState(
            absmax=self.scales[number],
            shape=self.shape[1:],
            code=self.code,
            blocksize=BLOCK,
            quant_type=self.quantization.bnb_4bit_quant_type,
            dtype=self.dtype,
            offset=self.offsets[number] if self.nested else None,
            state2=nested,
        )
        matrix: Tensor = dequantize_4bit(packed[number][:, None], state)
        return matrix

    @torch.no_grad()
    def forward(self, packed: Tensor) -> Tensor:
        """The whole stack."""
        stack = torch.empty(self.shape, dtype=self.dtype, device=packed.device)
        for number in range(len(stack)):
            stack[number] = self.expert(packed, number)
        return stack


def quantize(stack: Tensor, quantization: Quantization) -> tuple[Tensor, FourBit]:
    """(packed weights [experts, bytes], what dequantizes them) of a stack of matrices."""
    four_bit = FourBit(stack.shape, stack.dtype, quantization, stack.device)
    size = math.ceil(math.prod(stack.shape[1:]) / 2)
    packed = torch.empty(len(stack), size, dtype=torch.uint8, device=stack.device)
    for number, matrix in enumerate(stack):
        packed[number] = four_bit.pack(number, matrix)
    return packed, four_bit


def round_trip(stack: Tensor, quantization: Quantization) -> Tensor:
    """A stack of matrices as it is after 4 bits and back, in its own dtype."""
    packed, four_bit = quantize(stack, quantization)
    restored: Tensor = four_bit(packed)
    return restored


@dataclass(frozen=True)
class Stack:
    """One parameter of experts.

    Attributes:
        module: what holds it, and `leaf` its name there.
        shape: [experts, rows, columns].
        four_bit: what dequantizes it; None where it is plain.
        transposed: each matrix is [in, out] instead of [out, in].
    """

    module: Any
    leaf: str
    shape: torch.Size
    four_bit: FourBit | None
    transposed: bool

    @property
    def packed(self) -> Tensor:
        """What memory holds of its weights, apart from scales: [experts, bytes], or the parameter itself."""
        tensor: Tensor = (
            self.module.parametrizations[self.leaf].original if self.four_bit else getattr(self.module, self.leaf)
        )
        return tensor

    @property
    def dtype(self) -> torch.dtype:
        """That the matrices are computed with in."""
        return self.four_bit.dtype if self.four_bit else self.packed.dtype

    @property
    def held_bytes(self) -> int:
        """All bytes that memory holds of it."""
        held = [self.packed, *(self.four_bit.buffers() if self.four_bit else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def matrix(self, number: int) -> Tensor:
        """One expert's matrix [rows, columns]."""
        return self.four_bit.expert(self.packed, number) if self.four_bit else self.packed[number]


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds experts as transformers keeps them: its classes of them are called …Experts."""
    return parametrize.type_before_parametrizations(module).__name__.endswith("Experts")


def has_interface(module: nn.Module) -> bool:
    """Whether the forward pass of an experts' module can be chosen: transformers' use_experts_implementation."""
    return isinstance(vars(module).get("is_concatenated"), bool)


def stacks_in(module: nn.Module) -> Iterator[Stack]:
    """The stacks of one module, in the order of its class."""
    if not is_experts(module):
        return
    transposed = bool(getattr(module, "is_transposed", False))
    packed = four_bit_in(module)
    order = next(iter(packed.values())).siblings if packed else tuple(module._parameters)
    for leaf in order:
        if leaf in packed:
            yield Stack(module, leaf, packed[leaf].shape, packed[leaf], transposed)
            continue
        parameter = module._parameters.get(leaf)
        if parameter is not None and parameter.ndim == 3 and parameter.is_floating_point():
            yield Stack(module, leaf, parameter.shape, None, transposed)


def four_bit_in(module: nn.Module) -> dict[str, FourBit]:
    """The 4-bit stacks of a module, by parameter."""
    if not parametrize.is_parametrized(module):
        return {}
    lists: Any = module.parametrizations
    return {leaf: held[0] for leaf, held in lists.items() if isinstance(held[0], FourBit)}


def stacks(network: Any) -> Iterator[tuple[str, Stack]]:
    """(name, stack) of all experts in a network's decoder, plain and in 4 bits.

    Args:
        network: transformers' model, not PEFT's; names are those of its parameters, without PEFT's additions.
    """
    decoder = set(network.get_decoder().modules())
    for name, module in network.named_modules():
        if module in decoder:
            for stack in stacks_in(module):
                yield f"{name}.{stack.leaf}".replace(".base_layer", ""), stack


def stack_sha256(stack: Stack) -> str:
    """sha256 of a stack as training computes with it, in the order of memory; one expert at a time."""
    digest = hashlib.sha256()
    for number in range(stack.shape[0]):
        matrix = stack.matrix(number).detach().cpu().contiguous()
        digest.update(matrix.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def install(module: nn.Module, leaf: str, packed: nn.Parameter, four_bit: FourBit) -> None:
    """Put a 4-bit stack in the place of a parameter."""
    setattr(module, leaf, packed)
    parametrize.register_parametrization(module, leaf, four_bit, unsafe=True)


Fill = Callable[[FourBit, Tensor], Tensor]


def shaped(four_bit: FourBit, packed: Tensor) -> Tensor:
    """A stack's shape, dtype and device without its contents: all elements are one."""
    return torch.zeros((), dtype=four_bit.dtype, device=packed.device).expand(four_bit.shape)


@contextmanager
def plain(module: nn.Module, fill: Fill = FourBit.forward) -> Iterator[None]:
    """Have an experts' module be as its class defines it: plain parameters in the place of 4-bit stacks.

    PEFT 0.21 cannot work on parametrized parameters: of two on one module it ignores one, never takes the other's
    update away again, and nests them in another order than without parametrizations.

    Args:
        fill: makes the plain parameters; `shaped` makes empty ones. They are gone afterwards.
    """
    packed = four_bit_in(module)
    if not packed:
        yield
        return
    own_class = module.__class__
    lists: Any = module.parametrizations
    own = dict(module.named_parameters(recurse=False))
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name in own:
        delattr(module, name)
    for name in next(iter(packed.values())).siblings:
        if name in packed:
            value = nn.Parameter(fill(packed[name], lists[name].original), requires_grad=False)
            module.register_parameter(name, value)
        else:
            module.register_parameter(name, own.get(name))
    try:
        yield
    finally:
        for name in packed:
            delattr(module, name)
        module.__class__ = own_class
        module.parametrizations = lists


def dequantized_forward(module: nn.Module, experts: nn.Module) -> None:
    """Have a module's forward pass see the plain parameters of the 4-bit experts in it."""
    own = module.forward

    def forward(*inputs: Any, **named: Any) -> Any:
        with plain(experts):
            return own(*inputs, **named)

    module.forward = forward


def matrices(stack: Stack) -> Callable[[int], Tensor]:
    """Makes each expert's matrix [out, in]."""

    def matrix(number: int) -> Tensor:
        return stack.matrix(number).t() if stack.transposed else stack.matrix(number)

    return matrix
