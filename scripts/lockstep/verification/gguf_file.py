"""A GGUF file: its tensors as numbers, by transformers' names, and what its head says of tokens, stops and sampling."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lockstep import paths
from lockstep.errors import UserError

TOKENIZER = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
SAMPLING = "general.sampling."
# llama.cpp's names of settings that it takes from a file's head → transformers'.
SETTINGS = {
    "temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "typ_p": "typical_p",
    "penalty_repeat": "repetition_penalty", "penalty_freq": "frequency_penalty",
    "penalty_present": "presence_penalty",
}  # fmt: skip
# Tokens at which llama.cpp ends an answer by their spelling alone, whatever the head says.
KNOWN_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "< EOT >", "_<EOT>", "[EOT]", "[EOS]", "<EOT>", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<｜end▁of▁sentence｜>", "<turn|>",
}  # fmt: skip


@dataclass(frozen=True)
class GgufFile:
    """An opened file.

    Attributes:
        reader: the library's.
    """

    path: Path
    reader: Any

    @cached_property
    def kind(self) -> str:
        """How most of its numbers are stored."""
        sizes: Counter[str] = Counter()
        for tensor in self.reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        return sizes.most_common(1)[0][0] if sizes else "empty"

    def value(self, key: str) -> Any:
        """What the head says under a key; None where it does not."""
        field = self.reader.get_field(key)
        return None if field is None else field.contents()

    @property
    def template(self) -> str | None:
        text = self.value(TEMPLATE)
        return text if isinstance(text, str) else None

    @property
    def tokens(self) -> list[str]:
        return list(self.value(f"{TOKENIZER}tokens") or [])

    @property
    def ends(self) -> set[int]:
        """The ids at which an answer ends, by the head."""
        keys = ("eos_token_id", "eot_token_id", "eom_token_id")
        values = [self.value(f"{TOKENIZER}{key}") for key in keys]
        return {int(value) for value in values if value is not None}

    @property
    def sampling(self) -> dict[str, Any]:
        """What is asked for in every answer, by transformers' names."""
        values = {ours: self.value(f"{SAMPLING}{theirs}") for theirs, ours in SETTINGS.items()}
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in values.items()
            if value is not None
        }

    @cached_property
    def _by_name(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self.reader.tensors}

    @cached_property
    def _names(self) -> Any:
        import gguf

        architecture = str(self.value("general.architecture"))
        known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        if architecture not in known:
            raise UserError(f"{paths.label(self.path)}: the architecture {architecture} is not known here")
        return gguf.get_tensor_name_map(known[architecture], int(self.value(f"{architecture}.block_count") or 0))

    def tensor(self, parameter: str) -> Tensor | None:
        """A parameter in float32, in the file's order of rows; None where it is not there."""
        import gguf

        name = self._names.get_name(parameter, (".weight", ".bias"))
        stored = self._by_name.get(name or parameter)
        if stored is None:
            return None
        shape = tuple(int(size) for size in reversed(stored.shape))
        return torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).reshape(shape).copy())


def read(path: Path) -> GgufFile:
    """Open a file. Raises UserError where it is none."""
    import gguf

    try:
        return GgufFile(path, gguf.GGUFReader(path))
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise UserError(f"--export {paths.label(path)} is no GGUF file, or a damaged one ({error})") from error
