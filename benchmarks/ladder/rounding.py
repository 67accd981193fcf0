"""Weights as other storage would leave them: rounded to fewer bits and back."""

from typing import Any


def int8(weight: Any) -> Any:
    """Symmetric, one scale for each row."""
    values = weight.float()
    scale = values.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (values / scale).round().clamp(-127, 127) * scale


def fp8(weight: Any) -> Any:
    """E4M3, one scale for each row."""
    import torch

    values = weight.float()
    scale = values.abs().amax(1, keepdim=True).clamp_min(1e-12) / 448
    return (values / scale).to(torch.float8_e4m3fn).float() * scale


def nf4(weight: Any) -> Any:
    """bitsandbytes' NF4 in blocks of 64."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight.float().contiguous(), quant_type="nf4", blocksize=64))


def noise(size: float, seed: int, weight: Any) -> Any:
    """Gaussian, of `size` times the standard deviation of the weights."""
    import torch

    values = weight.float()
    draw = torch.Generator().manual_seed(seed)
    return values + size * values.std() * torch.randn(values.shape, generator=draw)
