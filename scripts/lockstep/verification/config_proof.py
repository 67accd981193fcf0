"""Whether a model's config.json lets it compute as the base does: every key, but for those that may differ.

Both configs are read by transformers first, so that keys that one of them leaves at their defaults, or spells as an
earlier version did (`rope_theta`, `torch_dtype`), are the same.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.model import networks
from lockstep.verification.verdict import FAILED, PASSED, Proof

# Keys that may differ → why.
FREE = {
    "transformers_version": "the library's version when the file was written",
    "_name_or_path": "where the model was loaded from",
    "architectures": "names of classes; the type decides",
    "dtype": "in what the weights are stored; the weights themselves are compared",
    "torch_dtype": "the same, as earlier versions spell it",
    "use_cache": "switched off while training, and on while generating",
    "vocab_size": "grows with the embeddings, which are compared",
    "tie_word_embeddings": "follows the head and the embeddings, which are compared",
    "eos_token_id": "see the proof `stops`",
    "bos_token_id": "what begins a text is decided by the tokenizer: see the proof `tokens`",
    "pad_token_id": "pads batches, and is masked",
    "quantization_config": "how weights are stored",
    "auto_map": "names code of a repository, which is not run",
    "unsloth_version": "of the tool that wrote the file",
    "unsloth_fixed": "of the tool that wrote the file",
    "attention_dropout": "of training only",
    "hidden_dropout": "of training only",
    "initializer_range": "of training only",
    "pretraining_tp": "of training only",
    "output_router_logits": "of training only",
    "router_aux_loss_coef": "of training only",
    "chunk_size_feed_forward": "how much is computed at a time",
    "problem_type": "of classifiers",
    "id2label": "of classifiers",
    "label2id": "of classifiers",
    "return_dict": "how the library returns results",
    "output_attentions": "how the library returns results",
    "output_hidden_states": "how the library returns results",
    "name_or_path": "where the model was loaded from",
}
ROPE = ("rope", "rotary")  # in the names of keys that decide how positions are encoded
LENGTH = "max_position_embeddings"


def of_configs(base: Path, model: Path) -> Proof:
    """Compare two folders' configs. Raises UserError where one cannot be read."""
    differences = list(_differences(_content(base), _content(model)))
    if not differences:
        return Proof(PASSED, {"config_differences": []}, None, "config.json says what the base's does")
    figures = {"config_differences": [key for key, *_ in differences]}
    rope = [difference for difference in differences if any(part in difference[0] for part in ROPE)]
    key, theirs, ours = (rope or differences)[0]
    text = f"config.json: {key} is {_short(theirs)}, and {_short(ours)} in {paths.label(base)}"
    diagnosis = "other_rope" if rope else "other_weights"
    return Proof(FAILED, figures, diagnosis, text, f"set {key} in config.json to the base's value")


def _content(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = networks.config_of(folder).to_dict()
    return content


def _differences(base: Mapping[str, Any], model: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, the model's value, the base's) of all that may not differ."""
    for key in sorted(base.keys() | model.keys()):
        if key in FREE or (key == LENGTH and not _depends_on_length(base)):
            continue
        ours, theirs = base.get(key), model.get(key)
        name = f"{path}{key}"
        if isinstance(ours, dict) and isinstance(theirs, dict):
            yield from _differences(ours, theirs, f"{name}.")
        elif not _same(ours, theirs):
            yield name, theirs, ours


def _depends_on_length(config: Mapping[str, Any]) -> bool:
    """Whether the encoding of positions depends on the longest length, which otherwise only bounds requests."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    return bool(kinds & {"dynamic", "longrope", "yarn"})


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, int | float) and isinstance(second, int | float) and not isinstance(first, bool):
        return bool(first == second)
    return type(first) is type(second) and bool(first == second)


def _short(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
