"""Merged folders as other tools make them: PEFT's own merge, and copies of it in which one thing is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
Tensors = dict[str, Tensor]


def by_peft(
    base: Path, adapter: Path, out: Path, dtype: torch.dtype = torch.bfloat16, saved: torch.dtype | None = None
) -> Path:
    """PEFT's merge_and_unload and save_pretrained, with the base's tokenizer beside it."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    from lockstep.model import networks

    merged = PeftModel.from_pretrained(networks.load(base, dtype, "cpu"), str(adapter)).merge_and_unload()
    (merged.to(saved) if saved else merged).save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


def changed(folder: Path, out: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy with other weights."""
    shutil.copytree(folder, out)
    save_file(change(load_file(folder / WEIGHTS)), out / WEIGHTS, metadata={"format": "pt"})
    return out


def tensors(folder: Path) -> Tensors:
    return load_file(folder / WEIGHTS)


def scaled(base: Tensors, factor: float) -> Callable[[Tensors], Tensors]:
    """What was trained, in another strength."""
    return lambda merged: {
        name: (base[name].float() + factor * (weight.float() - base[name].float())).to(weight.dtype)
        for name, weight in merged.items()
    }


def by_nf4(base: Tensors, adapter: Path, double: bool = True) -> Tensors:
    """The merge onto dequantized NF4 weights, as Axolotl makes it."""
    from lockstep.merging import dequantizer
    from lockstep.model import adapter_files
    from lockstep.settings.schema import Quantization

    quantization = Quantization(bnb_4bit_use_double_quant=double)
    updates = adapter_files.read(adapter).low_rank
    merged = {}
    for name, weight in base.items():
        if "proj" in name:
            weight = dequantizer.round_trip(weight, torch.bfloat16, quantization, "cpu").bfloat16()
        merged[name] = updates[name].added_to(weight, slice(None)).bfloat16() if name in updates else weight
    return merged
