"""A folder's tokenizer and chat template, as servers load them."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths
from lockstep.artifacts import atomic
from lockstep.errors import UserError
from lockstep.prompts import template_source, tokenizer_folder
from lockstep.prompts.template import FAILURES, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Chat:
    """What renders and encodes conversations.

    Attributes:
        label: where it comes from, for people.
        text: source of the template; None where there is none.
        template: to render with; None where the source is unfit for training with, as `problem` says.
        assumed: the template is taken to be the training's because it is the base's, and nothing says so.
    """

    label: str
    tokenizer: "PreTrainedTokenizerBase"
    text: str | None
    template: Template | None = None
    problem: str = ""
    assumed: bool = False

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer by itself puts its bos token before a text."""
        bos = self.tokenizer.bos_token_id
        encoded: Any = self.tokenizer.encode("a")
        return bos is not None and encoded[:1] == [bos]

    @property
    def end_of_turn(self) -> int | None:
        return self.template.end_of_turn if self.template else None

    def ids(self, messages: list[dict[str, Any]], tools: Any, whole: bool) -> list[int] | str:
        """The ids of a prompt, or of a whole conversation; where the template refuses it, its words."""
        assert self.template
        try:
            render = self.template.whole if whole else self.template.render
            return self.template.encode([render(messages, tools)])[0]
        except UserError as error:
            return str(error)

    def show(self, ids: list[int]) -> str:
        """The text of ids, with control tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def of_folder(folder: Path, text: str | None = None) -> Chat:
    """A folder's tokenizer, with its own template or another one.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    label = paths.label(folder)
    text = text if text is not None else template_source.of_folder(folder)
    try:
        tokenizer = tokenizer_folder.load(folder, lossy=True)
    except (*FAILURES, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer of {label} cannot be loaded: {reason}") from error
    if text is None:
        return Chat(label, tokenizer, None, problem=f"{label} holds no chat template")
    try:
        return Chat(label, tokenizer, text, Template(tokenizer, text))
    except UserError as error:
        return Chat(label, tokenizer, text, problem=f"{label}: {error}")


def stop_ids(folder: Path, file: str) -> list[int]:
    """The end tokens that config.json or generation_config.json of a folder names, of its text part, too."""
    content = atomic.read_json(folder / file) if (folder / file).exists() else {}
    stops: list[int] = []
    for part in (content, content.get("text_config") or {}):
        ids = part.get("eos_token_id")
        stops += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return list(dict.fromkeys(stops))


def copy_of(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """The same tokenizer, to be given another template."""
    return deepcopy(tokenizer)
