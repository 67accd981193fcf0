"""Experts are quantized while transformers loads them: one parameter at a time is held in 16 bits.

transformers' own quantizer for bitsandbytes quantizes linear layers; the one here does the experts as well.
"""

import ctypes
import sys
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.utils.quantization_config import QuantizationMethod

from lockstep.model import experts, experts_forward
from lockstep.settings.schema import Quantization

NAME = "lockstep_4bit"  # of the quantizer
FORWARD = "lockstep_4bit"  # of the experts' implementation


class FourBitConfig(BitsAndBytesConfig):  # type: ignore[misc]
    """bitsandbytes' 4-bit settings, for linear layers and experts."""

    def __init__(self, dtype: torch.dtype, **options: Any) -> None:
        super().__init__(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **options)
        self.quant_method = NAME  # until the quantizer exists: transformers looks for it by this


class _Packed(nn.Parameter):
    """Packed weights of a stack on their way from the file into the module."""

    four_bit: experts.FourBit


class _Quantize(ConversionOps):  # type: ignore[misc]
    """Quantizes what comes from the files: stacks of experts here, linear layers as transformers does it."""

    def __init__(self, linear: ConversionOps, stacks: dict[str, tuple[str, ...]], quantization: Quantization) -> None:
        self.linear, self.stacks, self.quantization = linear, stacks, quantization

    def convert(self, input_dict: dict[str, Any], **rest: Any) -> dict[str, Any]:
        """{parameter: [tensor]} → {parameter: the 4-bit one}."""
        results: dict[str, Any] = {}
        for name, value in input_dict.items():
            if name not in self.stacks:
                results |= self.linear.convert({name: value}, **rest)
                continue
            packed, four_bit = experts.quantize(value[0] if isinstance(value, list) else value, self.quantization)
            four_bit.siblings = self.stacks[name]
            results[name] = _Packed(packed, requires_grad=False)
            results[name].four_bit = four_bit
        return results


@register_quantizer(NAME)
class FourBitQuantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    """transformers' 4-bit quantizer, of linear layers and of experts."""

    def __init__(self, quantization_config: FourBitConfig, **options: Any) -> None:
        quantization_config.quant_method = QuantizationMethod.BITS_AND_BYTES
        super().__init__(quantization_config, **options)
        self.quantization = Quantization(
            bnb_4bit_quant_type=quantization_config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=quantization_config.bnb_4bit_use_double_quant,
        )
        self.stacks: dict[str, tuple[str, ...]] = {}  # and all parameters of each one's module

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
        super()._process_model_before_weight_loading(model, **options)
        self.stacks = {name: tuple(stack.module._parameters) for name, stack in experts.stacks(model)}

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        """Whether a parameter becomes 4-bit."""
        return param_name in self.stacks or super().param_needs_quantization(model, param_name, **options)

    def get_quantize_ops(self) -> ConversionOps:
        """What is done to such a parameter."""
        return _Quantize(super().get_quantize_ops(), self.stacks, self.quantization)

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        model = super()._process_model_after_weight_loading(model, **options)
        for name in self.stacks:
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            loaded = getattr(module, leaf)
            if isinstance(loaded, _Packed):
                experts.install(module, leaf, nn.Parameter(loaded.data, requires_grad=False), loaded.four_bit)
        for module in {model.get_submodule(name.rpartition(".")[0]) for name in self.stacks}:
            if not experts.has_interface(module):
                experts.dequantized_forward(module, module)
        if any(experts.has_interface(stack.module) for _, stack in experts.stacks(model)):
            model.set_experts_implementation(FORWARD)
        if self.stacks:
            _return_freed_memory()
        return model


def _return_freed_memory() -> None:
    """Have glibc give back what held weights in 16 bits while they were loaded: else it keeps some for later."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
        trim(0)


ALL_EXPERTS_FUNCTIONS.register(FORWARD, experts_forward.of_four_bit)
