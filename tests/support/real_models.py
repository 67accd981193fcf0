"""The shapes of real models, as folders: their own config.json, and files of the right size with nothing in them.

The configs in real_configs/ hold what decides shapes. Where they come from:

- qwen3.5-4b: config.json of Chandra 2, which is that model tuned; scripts/models/qwen3.5-4B.sh of vllm-project/vime
- qwen3.5-9b, smollm3-3b: transformers' defaults, which are those of these models
- qwen3-30b-a3b, gpt-oss-20b: the hyper-parameters published for Qwen/Qwen3-30B-A3B and openai/gpt-oss-20b, without
  the latter's MXFP4; the files themselves were not at hand
- gemma-4-e4b, gemma-4-12b: config.json of google/gemma-4-E4B-it and google/gemma-4-12B, towers by transformers' defaults
- ministral-3-8b: transformers' defaults for the text, what is published of mistralai/Ministral-3-8B-Instruct-2512 for
  the rest

Each has the number of parameters that its publisher gives.
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from support.published_layouts import keys_of_sharing_layers

CONFIGS = Path(__file__).parent / "real_configs"


def write(name: str, folder: Path) -> Path:
    """The folder of a real model: its config, and one sparse file with the tensors that transformers would save."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    from lockstep.model import networks

    shutil.copy(CONFIGS / f"{name}.json", folder / "config.json")
    network = networks.empty(folder)
    tied = set(network.all_tied_weights_keys)
    state = {key: tensor for key, tensor in network.state_dict().items() if key not in tied}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    written = revert_weight_conversion(network, state)
    for key, tensor in (keys_of_sharing_layers(written, 18) if name == "gemma-4-e4b" else written).items():
        kept = tensor.dtype if tensor.dtype != torch.float32 else torch.bfloat16
        start, end = end, end + tensor.numel() * kept.itemsize
        dtype = {torch.bfloat16: "BF16", torch.int64: "I64"}[kept]
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder
