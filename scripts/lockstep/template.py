"""The one renderer: the same template and the same ids in training, merging and serving.

A prompt's ids are the whole rendered prompt, encoded without added special tokens, as vLLM does
it. Only the answer is encoded apart; the end-of-turn token follows it and is supervised.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lockstep import paths
from lockstep.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "chat_template.jinja"
BUILT_IN = {"instruction_zh": Path(__file__).with_name("instruction_zh.jinja")}
INPUT_MARK = "\n\n### 输入:\n"  # where instruction_zh.jinja finds the input in a user message
_SENTINEL = "LockstepAnswer"

Message = dict[str, str]


def fold(instruction: str, context: str, template: str) -> str:
    """One user message from Alpaca's instruction and input, so that a chat request can send it.

    Args:
        context: Alpaca's `input`; blank counts as none.
        template: the `data.template` setting.
    """
    if not context.strip():
        return instruction
    if not instruction.strip():
        return context
    return instruction + (INPUT_MARK if template == "instruction_zh" else "\n") + context


def source(setting: str, model_dir: Path, system_prompt: str | None) -> str:
    """The template that a run uses, with the default system prompt written into it.

    Args:
        setting: `model`, a name in BUILT_IN, or the path of a .jinja file.
        model_dir: the base model's folder.
        system_prompt: put before conversations that bring none; None leaves the template as it is.

    Raises:
        UserError: no such template, or the model has none of its own.
    """
    file = model_dir / FILE if setting == "model" else BUILT_IN.get(setting, paths.data_file(setting))
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if setting == "model" and (inside := _template_in_config(model_dir)):
            return bake(inside, system_prompt)
        known = ", ".join(["model", *BUILT_IN])
        raise UserError(
            f"--data.template {setting}: {paths.label(file)} is not there; known are {known}, or a .jinja file"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--data.template {setting}: cannot read {paths.label(file)} ({error})") from error
    return bake(text, system_prompt)


def _template_in_config(model_dir: Path) -> str | None:
    """The template of models saved before templates had a file of their own."""
    settings = json.loads((model_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = settings.get("chat_template")
    return text if isinstance(text, str) else None


def bake(text: str, system_prompt: str | None) -> str:
    """A template that opens every conversation without a system message with `system_prompt`."""
    if system_prompt is None:
        return text
    # A JSON string is a Jinja string, too. The empty {{ '' }} keeps the next line break, which
    # Jinja would take away after a block.
    literal = json.dumps(system_prompt, ensure_ascii=False)
    return (
        "{%- if messages[0]['role'] != 'system' -%}"
        "{%- set messages = [{'role': 'system', 'content': " + literal + "}] + messages -%}"
        "{%- endif -%}{{ '' }}" + text
    )


class Template:
    """A tokenizer with a run's chat template.

    Attributes:
        text: the Jinja source.
        end_ids: what follows an answer, ending in the end-of-turn token.
        end_of_turn: that token's id.

    Raises:
        UserError: the template fails, or puts no control token after an answer, so that a model
            trained with it would never learn to stop.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
        self.tokenizer, self.text = tokenizer, text
        tokenizer.chat_template = text
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        # Runs of spaces are added tokens of some tokenizers; they control nothing.
        controls = sorted((token for token in added if token.strip()), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self.end_ids = self._find_end()
        self.end_of_turn = self.end_ids[-1]

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that asks for the next answer, as text."""
        return self._apply(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids, equal to those of the server for the same messages."""
        return self.encode(self.render(messages))

    def answer_ids(self, answer: str) -> list[int]:
        """The answer's token ids and the end of the turn: what is supervised."""
        return self.encode(answer) + self.end_ids

    def encode(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer.encode(text, add_special_tokens=False))

    def control_token(self, text: str) -> str | None:
        """The first added token of the tokenizer in a text, which would act as a control token."""
        match = self._control.search(text)
        return match.group() if match else None

    def _apply(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError) as error:
            raise UserError(f"the chat template fails on {list(messages)!r:.80}: {error}") from error
        return cast(str, rendered)

    def _find_end(self) -> list[int]:
        conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
        after = self._apply(conversation, add_generation_prompt=False).rpartition(_SENTINEL)[2]
        end = self._control.search(after)
        if end is None or after[: end.start()].strip():
            raise UserError(
                "the chat template puts no control token right after an answer: a model trained "
                "with it would never stop; choose another --data.template"
            )
        return self.encode(after[: end.end()])


def load(model_dir: Path, text: str) -> Template:
    """The tokenizer of a model folder with a template's source. Raises UserError."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    return Template(tokenizer, text)
