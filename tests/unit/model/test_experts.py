"""Stacks of experts in 4 bits: each by itself, readable as before, and of the size that the arithmetic says."""

import ast
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from support import families
from torch import nn

from lockstep.model import experts, networks
from lockstep.settings.schema import Quantization

CHOICES = [
    Quantization(bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
    for kind in ("nf4", "fp4")
    for double in (True, False)
]


@pytest.mark.parametrize("quantization", CHOICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 40, 64), (2, 7, 9), (1, 300, 128)])
def test_each_expert_is_what_bitsandbytes_makes_of_it_alone(
    shape: tuple[int, ...], dtype: torch.dtype, quantization: Quantization
) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype) * torch.arange(1, shape[0] + 1)[
        :, None, None
    ].to(dtype)
    packed, four_bit = experts.quantize(stack, quantization)
    for number, matrix in enumerate(stack):
        theirs, state = quantize_4bit(
            matrix.contiguous(), compress_statistics=quantization.bnb_4bit_use_double_quant,
            quant_type=quantization.bnb_4bit_quant_type,
        )  # fmt: skip
        assert torch.equal(four_bit.expert(packed, number), dequantize_4bit(theirs, state))
        assert torch.equal(four_bit(packed)[number], four_bit.expert(packed, number))
    assert four_bit(packed).dtype == dtype
    assert torch.equal(experts.round_trip(stack, quantization), four_bit(packed))
    assert 0 < (experts.round_trip(stack, quantization) - stack).abs().mean() < 0.2 * stack.abs().mean()


def test_the_bytes_are_those_of_4_bits_and_their_scales() -> None:
    stack = torch.randn(4, 96, 128)
    module = nn.Module()
    module.up_proj = nn.Parameter(stack)
    packed, four_bit = experts.quantize(stack, Quantization())
    experts.install(module, "up_proj", nn.Parameter(packed, requires_grad=False), four_bit)
    held = experts.Stack(module, "up_proj", stack.shape, four_bit, transposed=False)
    blocks = 96 * 128 // 64
    weights = 4 * (96 * 128 // 2 + blocks + 4 * math.ceil(blocks / 256) + 4)  # nibbles, scales, their scales, an offset
    assert held.held_bytes == weights + 16 * 4 + 256 * 4  # and two tables
    whole = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    assert held.held_bytes == whole, "something else is held"


class _TwoExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(2, 8, 16))
        self.up_proj_bias = nn.Parameter(torch.zeros(2, 8))
        self.down_proj = nn.Parameter(torch.randn(2, 16, 8))


def four_bit_experts() -> _TwoExperts:
    module = _TwoExperts()
    order = tuple(module._parameters)
    for leaf in ("down_proj", "up_proj"):  # as a checkpoint's order has it
        packed, four_bit = experts.quantize(getattr(module, leaf).detach(), Quantization())
        four_bit.siblings = order
        experts.install(module, leaf, nn.Parameter(packed, requires_grad=False), four_bit)
    return module


def test_a_module_is_plain_for_a_while_and_then_as_before() -> None:
    module = four_bit_experts()
    before = {leaf: getattr(module, leaf) for leaf in ("up_proj", "down_proj")}
    assert [stack.leaf for stack in experts.stacks_in(module)] == ["up_proj", "down_proj"]
    with experts.plain(module):
        assert type(module) is _TwoExperts
        assert [name for name, _ in module.named_parameters()] == ["up_proj", "up_proj_bias", "down_proj"]
        assert all(torch.equal(getattr(module, leaf), before[leaf]) for leaf in before)
        with experts.plain(module):
            assert type(module) is _TwoExperts
    assert all(torch.equal(getattr(module, leaf), before[leaf]) for leaf in before)
    assert all(stack.four_bit for stack in experts.stacks_in(module))
    with pytest.raises(ZeroDivisionError), experts.plain(module):
        raise ZeroDivisionError
    assert all(torch.equal(getattr(module, leaf), before[leaf]) for leaf in before)


def test_shapes_alone_take_no_memory() -> None:
    module = four_bit_experts()
    with experts.plain(module, experts.shaped):
        assert module.up_proj.shape == (2, 8, 16)
        assert module.up_proj.untyped_storage().nbytes() == 4


def test_a_hash_is_that_of_the_dequantized_stack() -> None:
    module = four_bit_experts()
    for stack in experts.stacks_in(module):
        assert experts.stack_sha256(stack) == networks.tensor_sha256(getattr(module, stack.leaf))


@pytest.mark.parametrize("name", [name for name, family in families.ALL.items() if "experts" in family.layers])
def test_every_family_s_experts_are_known_by_name_and_shape(name: str) -> None:
    """Everything of three dimensions in a decoder, but for the kernels of convolutions."""
    import transformers

    family = families.ALL[name]
    with torch.device("meta"):
        cls = getattr(transformers, family.network)
        network = cls(cls.config_class(**family.values))
    _, decoder = networks.decoder(network)
    convolutions = {id(module.weight) for module in decoder.modules() if isinstance(module, nn.Conv1d)}
    inside = {id(weight) for weight in decoder.parameters()}
    three = {
        name
        for name, weight in network.named_parameters()
        if weight.ndim == 3 and id(weight) in inside and id(weight) not in convolutions
    }
    assert {name for name, _ in experts.stacks(network)} == three
    assert three


def classes_of_experts() -> dict[str, tuple[list[str], bool]]:
    """Of each class that holds experts in three dimensions: its parameters in their order, and its interface."""
    root = Path(importlib.util.find_spec("transformers").submodule_search_locations[0])  # type: ignore[union-attr, index]
    classes = {}
    for file in sorted(root.glob("models/*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        if "Experts(nn.Module)" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Experts"):
                assigned = [
                    (place.attr, ast.unparse(statement.value))
                    for statement in ast.walk(node)
                    if isinstance(statement, ast.Assign)
                    for place in statement.targets
                    if isinstance(place, ast.Attribute) and ast.unparse(statement.value).startswith("nn.Parameter(")
                ]
                decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
                if assigned:
                    names = list(dict.fromkeys(name for name, _ in assigned))
                    classes[f"{file.parent.name}.{node.name}"] = (names, "use_experts_implementation" in decorators)
    return classes


def test_all_classes_of_transformers_hold_their_parameters_in_the_order_that_adapters_files_are_read_in() -> None:
    """PEFT nests wrappers in this order, and its files do not say which is which."""
    from lockstep.model import stacked_update

    classes = classes_of_experts()
    assert len(classes) > 50
    for name, (order, _) in classes.items():
        targets = [f"x.{leaf}" for leaf in order]
        read = [
            stacked_update.parameter_of("x" + stacked_update.INNER * depth, {"x": len(order)}, targets)
            for depth in range(len(order))
        ]
        assert read == [f"x.{leaf}" for leaf in reversed(order)], name


def test_the_classes_without_the_interface_are_known() -> None:
    """They are quantized and adapted, too, but by PEFT's pass, which keeps a layer's experts in 16 bits for a while."""
    without = {name.partition(".")[0] for name, (_, interface) in classes_of_experts().items() if not interface}
    assert without == {"inkling", "jetmoe", "llama4", "longcat_flash", "step3p7"}


def test_an_experts_module_is_told_by_its_class() -> None:
    assert experts.is_experts(four_bit_experts()) and not experts.is_experts(nn.Linear(2, 2))
    assert not experts.has_interface(four_bit_experts())
