"""Networks: which device and dtype, how a base is loaded, and what its 4-bit layers compute with."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lockstep.errors import UserError
from lockstep.settings.schema import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Gemma 3n bounds these weights itself in every training pass, and passes by what lies around the second.
CLAMPED = ("altup.prediction_coefs", "altup.correction_coefs")


def device() -> str:
    """cuda, mps or cpu: the best that is here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def compute_dtype(setting: str, on: str) -> torch.dtype:
    """The dtype of matrix products.

    Args:
        setting: a dtype's name, or auto: bfloat16 where the device computes with it; otherwise
            float16 on CUDA and float32 elsewhere.
        on: a device, as `device` names it.
    """
    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(setting, torch.float32)
    if on == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if on == "cpu":
        able = torch.cpu.get_capabilities()
        has_bf16 = able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16")
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as configs and manifests write it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def longest(config: Any) -> int | None:
    """The positions that a model has; None where its config sets no bound."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions


def config_of(folder: Path) -> Any:
    """The config of a local model. Code of its repository is never run."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def auto_class(config: Any) -> Any:
    """The class of transformers' that loads a config's network: the one that its checkpoint names.

    A multimodal wrapper stays whole, so that its tensors keep their names and the parts that text never reaches are
    there; where the config names no class, its causal language model is taken, or else its wrapper.

    Raises:
        UserError: it is no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    named = (config.architectures or [f"a model of type {config.model_type}"])[0]
    if config.is_encoder_decoder:
        raise UserError(
            f"the model is {named}, an encoder with a decoder: only causal language models are trained here"
        )
    # the config of GPT-NeoX has this field, too, and its attention is causal whatever it says
    if getattr(config, "is_decoder", True) is False and not config.model_type.startswith("gpt_neox"):
        raise UserError(
            f"the model is {named}, an encoder that reads texts in both directions: only causal language models are "
            f"trained here"
        )
    known = [
        auto
        for auto in (AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForImageTextToText)
        if type(config) in auto._model_mapping
    ]
    if not known:
        raise UserError(f"the model is {named}: only causal language models are trained here")
    return next((auto for auto in known if auto._model_mapping[type(config)].__name__ == named), known[0])


def empty(folder: Path) -> "PreTrainedModel":
    """The network of a local model on the meta device, in bfloat16: names, shapes and classes, no weights.

    Raises:
        UserError: it is no causal language model.
    """
    config = config_of(folder)
    with torch.device("meta"):
        network: PreTrainedModel = auto_class(config).from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    return network


def load(folder: Path, dtype: torch.dtype, on: str, quantization: Quantization | None = None) -> "PreTrainedModel":
    """A causal language model from a local folder of safetensors.

    Args:
        dtype: of the weights that are not quantized, and of 4-bit matrix products.
        on: the device.
        quantization: 4-bit settings, or None for plain weights.
    """
    from transformers.utils import logging as transformers_logging

    from lockstep.model.experts_loading import FourBitConfig

    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    # 4-bit layers skip what llm_int8_skip_modules names, too
    four_bit = quantization and FourBitConfig(
        dtype, llm_int8_skip_modules=_not_quantized(empty(folder)), **quantization.of_bitsandbytes()
    )
    transformers_logging.set_verbosity_error()  # it reports tensors that it leaves out, which are accounted for
    try:
        network = auto_class(config_of(folder)).from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": on},
            quantization_config=four_bit,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    network.config.use_cache = False
    for _, layer in linear4bit(network) if quantization else ():
        # On CPUs with AVX-512-BF16, bitsandbytes 0.50 repacks such a layer's weight in place in
        # its first evaluation pass, and every later gradient is wrong, without an error.
        layer.support_avx512bf16_for_cpu = False
    return network


def decoder(network: Any) -> tuple[str, nn.Module]:
    """(name, module) of the stack of layers that text passes through; a wrapper has other parts beside it."""
    module = network.get_decoder()
    return next(name for name, other in network.named_modules() if other is module), module


def text_modules(network: Any) -> set[str]:
    """Names of the modules that text passes through: the decoder, its embeddings, the output layer, all in them.

    All others belong to towers for images and sound, and to what brings their outputs into the decoder.
    """
    parts = [network.get_decoder(), network.get_input_embeddings(), network.get_output_embeddings()]
    ids = {id(module) for part in parts if part is not None for module in part.modules()}
    return {name for name, module in network.named_modules() if id(module) in ids}


def text_parameters(network: Any) -> set[str]:
    """Names of the parameters that take part in text."""
    modules = text_modules(network)
    return {name for name, _ in network.named_parameters(remove_duplicate=False) if name.rpartition(".")[0] in modules}


def replace_linear_layers(network: Any, quantization: Quantization) -> None:
    """Give a network on the meta device 4-bit layers, as `load` does before it reads weights."""
    from transformers import BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear

    settings = BitsAndBytesConfig(load_in_4bit=True, **quantization.of_bitsandbytes())
    replace_with_bnb_linear(
        network, modules_to_not_convert=_not_quantized(network), quantization_config=settings, pre_quantized=False
    )
    for _, layer in linear4bit(network):
        if layer.bias is not None:  # made in torch's default dtype
            layer.bias.data = layer.bias.data.to(network.dtype)


def _not_quantized(network: Any) -> list[str]:
    """Names of the linear layers that stay as they are: the output layer, those that text never reaches, those that
    compute something else than a linear layer does, those whose weight the model itself changes, and Mamba's inner
    ones."""
    prefix, _ = decoder(network)
    layers = ((name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear))
    return [
        name
        for name, module in layers
        if not (name.startswith(f"{prefix}.") and is_plain_linear(module))
        or name.endswith(CLAMPED)
        or is_inside_mamba(network, name)
    ]


def is_inside_mamba(network: nn.Module, name: str) -> bool:
    """Whether a layer is one of a Mamba mixer's inner ones: fused kernels on GPUs take the weights of all its layers
    but the first and never call them, so that such a layer can neither be in 4 bits nor have an adapter."""
    owner, _, own = name.rpartition(".")
    parameters = dict(network.get_submodule(owner).named_parameters(recurse=False))
    return own != "in_proj" and {"A_log", "D"} <= parameters.keys()


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes what nn.Linear does: DeepSeek-V4's grouped projection and Llama 4's router do not."""
    if not isinstance(module, nn.Linear) or _is_4bit(module) or type(module).forward is nn.Linear.forward:
        return isinstance(module, nn.Linear)
    probe, ones = nn.Linear(3, 2, bias=False, device="cpu"), torch.ones(1, 3, device="cpu")
    expected = probe(ones)
    probe.__class__ = type(module)
    try:
        result = probe(ones)
    except (AttributeError, RuntimeError, TypeError):  # it needs more than a weight
        return False
    return isinstance(result, Tensor) and torch.allclose(result, expected)


def _is_4bit(module: nn.Module) -> bool:
    import bitsandbytes

    return isinstance(module, bitsandbytes.nn.Linear4bit)


def linear4bit(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every 4-bit layer."""
    for name, layer in network.named_modules():
        if _is_4bit(layer):
            yield name, layer


def dequantize(layer: Any) -> Tensor:
    """The weight [out, in] that a 4-bit layer computes with, in its compute dtype."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(layer.compute_dtype)


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, in row order."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()
