"""Everything of a merged model's folder but the weights: configs, tokenizer, template, contract, processors."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lockstep.artifacts import atomic, filenames
from lockstep.merging import merge
from lockstep.model import carried_files, checkpoint_files, checkpoint_names, networks
from lockstep.model.adapter_delta import EMBEDDINGS
from lockstep.model.checkpoint_files import FileTensor
from lockstep.model.checkpoint_names import CheckpointNames


def write_rest(base: Path, adapter: Path, out: Path) -> None:
    """Write everything but the weights, which must be there already: configs, tokenizer, template, contract.

    The end-of-turn token that training supervised becomes a stop token in config and generation
    config, so that every server stops at it. A head that is no longer the embedding is untied, and the
    size of a vocabulary that grew is corrected.
    """
    from lockstep.prompts import template

    text = (adapter / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    chat = template.load(adapter, text)
    chat.tokenizer.save_pretrained(out)
    (out / filenames.CONTRACT).write_bytes((adapter / filenames.CONTRACT).read_bytes())
    config = atomic.read_json(base / filenames.CONFIG)
    file = base / filenames.GENERATION_CONFIG
    generation = atomic.read_json(file) if file.exists() else {}
    # of the base's own stop tokens only special ones: the text of an answer cannot hold them
    added = chat.tokenizer.added_tokens_decoder
    of_base = [stop for stop in (*_stop_ids(generation), *_stop_ids(config)) if stop in added and added[stop].special]
    stops = [chat.end_of_turn, chat.tokenizer.eos_token_id, *of_base]
    unique = list(dict.fromkeys(stop for stop in stops if stop is not None))
    eos: Any = unique if len(unique) > 1 else unique[0]
    config |= {"eos_token_id": eos, "dtype": networks.dtype_name(merge.DTYPE)}
    config.pop("torch_dtype", None)
    names = checkpoint_names.of_folder(base)
    _correct_parts(config, names, out)
    atomic.write_json(out / filenames.CONFIG, config)
    atomic.write_json(out / filenames.GENERATION_CONFIG, generation | {"eos_token_id": eos})
    carried_files.carry(base, out)


def _correct_parts(config: dict[str, Any], names: CheckpointNames, out: Path) -> None:
    """Bring a config, and those of a wrapper's parts, in line with the weights."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts[1:]:
        for key in {"dtype", "torch_dtype"} & part.keys():
            part[key] = config["dtype"]
    there = checkpoint_files.tensors_of(out)
    if not _still_tied(names, there):
        for part in parts:
            if part is config or "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
    embeddings = [names.on_disk(name) for name in names.shapes if name.endswith(EMBEDDINGS)]
    vocabularies = [there[name].shape[0] for name in embeddings if name in there]
    if vocabularies:
        part = config if "vocab_size" in config else config.get("text_config", config)
        part["vocab_size"] = vocabularies[-1]


def _still_tied(names: CheckpointNames, there: dict[str, FileTensor]) -> bool:
    """Whether the tensors that are one in the base are equal in the merged model, or still one.

    Args:
        there: the merged model's tensors.
    """

    def read(name: str) -> Tensor:
        with safe_open(there[name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    pairs = [(names.on_disk(first), names.on_disk(second)) for first, second in names.tied.items()]
    return all(torch.equal(read(first), read(second)) for first, second in pairs if {first, second} <= there.keys())


def _stop_ids(config: dict[str, Any]) -> list[int]:
    """The stop tokens of a config, and of the decoder's where that is a wrapper's."""
    stops: list[int] = []
    for part in (config, config.get("text_config") or {}):
        ids = part.get("eos_token_id")
        stops += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return stops
