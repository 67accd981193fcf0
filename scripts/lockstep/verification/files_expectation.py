"""What an endpoint must do, worked out here from base, adapter or merged folder, where no run put it on record."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.settings.schema import Data
from lockstep.verification.expectation import Expectation
from lockstep.verification.subjects import Subjects, has_tokenizer

if TYPE_CHECKING:
    from lockstep.prompts.template import Template

# Keys of generation_config.json that change which token is drawn, by transformers' names.
SAMPLING = (
    "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "encoder_repetition_penalty",
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
    "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens", "max_length", "max_new_tokens",
    "num_beams", "length_penalty", "guidance_scale",
)  # fmt: skip


def of_files(subjects: Subjects) -> Expectation:
    """The expectation of an endpoint: what a run's files say, or else what is computed from base and adapter.

    Raises:
        UserError: nothing given holds a tokenizer with a chat template.
    """
    from lockstep.prompts import contract

    folder = subjects.reference or subjects.merged
    if folder is None or not has_tokenizer(folder):
        raise UserError("--endpoint needs to know what was trained: give --base, --adapter, --merged or --bundle")
    recorded = folder / filenames.CONTRACT
    agreed = atomic.read_json(recorded) if recorded.exists() else contract.build(chat_of(subjects, folder), Data())
    reference = folder / filenames.REFERENCE
    return Expectation(
        paths.label(folder),
        agreed,
        atomic.read_json(reference) if reference.exists() else None,
        sampling_of(subjects.base or folder),
    )


def chat_of(subjects: Subjects, folder: Path) -> "Template":
    """A folder's tokenizer, with the template that was given or else its own.

    Raises:
        UserError: it has none, or none that can be used.
    """
    from lockstep.prompts import template, template_source

    text = subjects.template or template_source.of_folder(folder)
    if text is None:
        raise UserError(f"{paths.label(folder)} holds no chat template: give --template FILE")
    return template.load(folder, text)


def sampling_of(folder: Path) -> dict[str, Any]:
    """What a folder's generation_config.json says of sampling; nothing of what it does not mention."""
    file = folder / filenames.GENERATION_CONFIG
    content = atomic.read_json(file) if file.exists() else {}
    return {name: content[name] for name in SAMPLING if content.get(name) is not None}
