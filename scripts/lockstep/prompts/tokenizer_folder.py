"""Reading the tokenizer of a model's folder."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = ("Be brief. (a+b)*2", "你是谁？", "🙂")  # texts that any tokenizer should decode unchanged; most do


def load(model_dir: Path, lossy: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder.

    For some tokenizer classes transformers 5 rebuilds the tokenizer instead of reading tokenizer.json. With byte-level
    files that name another class (copies of DeepSeek's, for instance) spaces and Chinese are lost silently. Then
    tokenizer.json is used as it is, and is saved that way with the adapter and the merged model.

    Args:
        lossy: whether one that loses plain text is taken, too: to be looked at.

    Raises:
        UserError: there is no tokenizer, or it loses plain text either way.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        model_dir, local_files_only=True, trust_remote_code=False
    )
    if not all(_keeps(tokenizer, probe) for probe in PROBES) and (model_dir / filenames.TOKENIZER).exists():
        plain = PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
        tokenizer = plain if all(_keeps(plain, probe) for probe in PROBES) else tokenizer
    if not lossy and not _keeps(tokenizer, PROBES[0]):
        raise UserError(
            f"the tokenizer of {paths.label(model_dir)} does not give {PROBES[0]!r} back: its files do not fit together"
        )
    return tokenizer


def _keeps(tokenizer: "PreTrainedTokenizerBase", text: str) -> bool:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return cast(str, tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip() == text
