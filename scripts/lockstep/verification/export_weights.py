"""The weights of an export as numbers: GGUF files, and folders that compressed-tensors or bitsandbytes wrote."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model.checkpoint_names import CheckpointNames
from lockstep.verification import gguf_file
from lockstep.verification.gguf_file import GgufFile
from lockstep.verification.tensor_reader import TensorReader

COMPRESSED, BITSANDBYTES = "compressed-tensors", "bitsandbytes"
PACKED = ("weight_packed", "weight")  # endings of what holds a compressed weight's numbers


class ExportedWeights(Protocol):
    """What an export holds.

    Attributes:
        format: its name, for people.
    """

    format: str

    def candidates(self, parameter: str) -> Iterator[Tensor]:
        """What a parameter may be, in float32: formats store some in another order. Nothing where it is not there."""


def read(path: Path, names: CheckpointNames) -> ExportedWeights:
    """An export.

    Args:
        names: of the base, or of the merged model.

    Raises:
        UserError: its format is not known here.
    """
    if path.is_file():
        return GgufWeights(gguf_file.read(path), names)
    config = atomic.read_json(path / filenames.CONFIG)
    settings = config.get("quantization_config") or config.get("compression_config") or {}
    method = settings.get("quant_method", "none" if not settings else COMPRESSED)
    if method in (COMPRESSED, BITSANDBYTES, "none"):
        return FolderWeights(path, names, method, settings)
    raise UserError(
        f"--export {paths.label(path)} is in the format {method}, whose numbers are not read here; known are GGUF, "
        f"{COMPRESSED} and {BITSANDBYTES}"
    )


class GgufWeights:
    """A GGUF file, by the names of a checkpoint."""

    def __init__(self, file: GgufFile, names: CheckpointNames) -> None:
        self.file, self.format = file, f"GGUF {file.kind}"
        self.config = names.network.config.get_text_config()

    def candidates(self, parameter: str) -> Iterator[Tensor]:
        tensor = self.file.tensor(parameter)
        if tensor is None:
            return
        yield tensor
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        count = next((getattr(self.config, key, 0) for part, key in heads.items() if f".{part}." in parameter), 0)
        if count and len(tensor) % (2 * count) == 0:  # llama.cpp pairs neighbours where transformers pairs halves
            half = len(tensor) // count // 2
            yield tensor.reshape(count, half, 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        if tensor.dim() == 1:  # norms that are stored as what is added to one
            yield tensor - 1


class FolderWeights:
    """A folder of safetensors, compressed or not, by the names of a checkpoint."""

    def __init__(self, folder: Path, names: CheckpointNames, method: str, settings: dict[str, Any]) -> None:
        self.reader, self.method, self.settings = TensorReader(folder), method, settings
        self.format = method if method != "none" else "safetensors"
        self.on_disk = {
            parameter: group.tensors[0] for group in names.groups if group.is_plain for parameter in group.parameters
        }
        self.parts: dict[str, dict[str, str]] = defaultdict(dict)  # module → ending → name
        for name in self.reader.stored:
            module, _, ending = name.rpartition(".")
            if ".weight." in name:  # bitsandbytes' tables stand below the weight
                module, _, ending = name.partition(".weight.")
            self.parts[module][ending] = name

    def candidates(self, parameter: str) -> Iterator[Tensor]:
        module, _, ending = self.on_disk.get(parameter, parameter).rpartition(".")
        parts = {name: self.reader.whole(stored) for name, stored in self.parts.get(module, {}).items()}
        if ending != "weight":
            if ending in parts:
                yield parts[ending].float()
        elif self.method == BITSANDBYTES and "absmax" in parts:
            yield _of_bitsandbytes(parts)
        elif "weight_packed" in parts or "weight_scale" in parts:
            yield _of_compressed(module, parts, self.settings)
        elif "weight" in parts:
            yield parts["weight"].float()


def _of_bitsandbytes(parts: dict[str, Tensor]) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    tables = {name: tensor for name, tensor in parts.items() if name != "weight"}
    restored: Tensor = dequantize_4bit(parts["weight"], QuantState.from_dict(tables, torch.device("cpu")))
    return restored.float()


def _of_compressed(module: str, parts: dict[str, Tensor], settings: dict[str, Any]) -> Tensor:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(
        {key: value for key, value in settings.items() if key in QuantizationConfig.model_fields}
    )
    schemes = list(config.config_groups.values())
    scheme = next((each for each in schemes if _targets(each, module)), schemes[0])
    form = getattr(scheme, "format", None) or config.format
    compressor = BaseCompressor.get_value_from_registry(str(getattr(form, "value", form)))
    restored: Tensor = compressor.decompress(parts, scheme)["weight"]
    return restored.float()


def _targets(scheme: Any, module: str) -> bool:
    return any(re.match(target[3:], module) if target.startswith("re:") else False for target in scheme.targets)
