"""The tokenizer of training, loaded once, without torch: a program that asks an endpoint every hour stays small."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.artifacts import filenames
from lockstep.prompts import tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@functools.lru_cache(4)
def load(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder, as its tokenizer.json has it: transformers' AutoTokenizer would load torch.

    Raises:
        UserError: there is no tokenizer.
    """
    if not (folder / filenames.TOKENIZER).exists():
        return tokenizer_folder.load(folder)
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return tokenizer
