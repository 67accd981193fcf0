"""Networks: which device and dtype, how a base is loaded, and the loss that training minimises."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lockstep.collator import IGNORE
from lockstep.config import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if on == "cpu":
        able = torch.cpu.get_capabilities()
        has_bf16 = able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16")
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.float32


def load(folder: Path, dtype: torch.dtype, on: str, quantization: Quantization | None = None) -> "PreTrainedModel":
    """A causal language model from a local folder of safetensors.

    Args:
        dtype: of the weights that are not quantized, and of 4-bit matrix products.
        on: the device.
        quantization: 4-bit settings, or None for plain weights.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    four_bit = quantization and BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **quantization.model_dump()
    )
    network = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": on},
        quantization_config=four_bit,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    network.config.use_cache = False
    for _, layer in linear4bit(network):
        # On CPUs with AVX-512-BF16, bitsandbytes 0.50 repacks such a layer's weight in place in
        # its first evaluation pass, and every later gradient is wrong, without an error.
        layer.support_avx512bf16_for_cpu = False
    return network


def tied_weights(folder: Path) -> dict[str, str]:
    """The tensors of a model that are no own ones, each with the name of the one that it is: head → embedding."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):  # names, no weights
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return dict(network.all_tied_weights_keys)


def linear4bit(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every 4-bit layer."""
    import bitsandbytes

    for name, layer in network.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            yield name, layer


def dequantize(layer: Any) -> Tensor:
    """The weight [out, in] that a 4-bit layer computes with, in its compute dtype, on the CPU."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(layer.compute_dtype).cpu()


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, in row order."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def supervised_logits(network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and targets at supervised positions, and nowhere else.

    The output layer is the costliest of a small model, and prompts carry no loss: a hook hands
    it only the hidden states that predict a supervised token.

    Args:
        batch: `input_ids`, `labels` and `attention_mask` or `position_ids`, each [rows, length]; a collator's.

    Returns:
        float32 logits [n, vocabulary] and their n targets, row by row.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]  # the token at position i is predicted at position i - 1
    supervised = targets != IGNORE

    def select(_: nn.Module, hidden: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (hidden[0][:, :-1][supervised],)

    hook = network.get_output_embeddings().register_forward_pre_hook(select)  # type: ignore[operator]
    try:
        logits: Tensor = network(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits.float(), targets[supervised]


def rows_see_each_other(network: nn.Module) -> bool:
    """Whether a row's logits change with the row that is laid before it: then padding-free batches are wrong.

    Models without rotary positions, and those with a recurrent state, know no borders between rows.
    """
    from lockstep.collator import PackingCollator

    def logits(before: range) -> Tensor:
        rows = [{"input_ids": list(ids), "labels": list(ids)} for ids in (before, range(60, 76))]
        device = next(network.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in PackingCollator()(rows).items()}
        return supervised_logits(network, batch)[0][-15:]

    training = network.training
    network.eval()
    with torch.no_grad():
        first, second = logits(range(5, 21)), logits(range(40, 56))
    network.train(training)
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-3)


def loss_sum(network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Summed negative log-likelihood in nats, and over how many tokens."""
    logits, targets = supervised_logits(network, batch)
    return nn.functional.cross_entropy(logits, targets, reduction="sum"), len(targets)
