"""The source of a run's chat template: where it comes from, and what is written into it so that it stays the same.

Whatever could differ between training and serving is fixed here: system prompt, thinking flag, and the date.
"""

import datetime
import json
import re
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.settings.schema import Data

TODAY = Data().date
THINKING_FLAGS = ("enable_thinking", "thinking")
BUILT_IN = {"instruction_zh": Path(__file__).with_name("instruction_zh.jinja")}
INPUT_MARK = "\n\n### 输入:\n"  # separates instruction and input in a user message; instruction_zh.jinja looks for it


def fold(instruction: str, context: str, template: str) -> str:
    """Alpaca's instruction and input as one user message, as a chat request sends it.

    Args:
        context: Alpaca's `input`; if it is blank, there is none.
        template: the `data.template` setting.
    """
    if not context.strip():
        return instruction
    if not instruction.strip():
        return context
    return instruction + (INPUT_MARK if template == "instruction_zh" else "\n") + context


def read(data: Data, model_dir: Path) -> str:
    """The source of the template that a run uses, with system prompt, thinking flag and date written into it.

    Args:
        data: its `template` is `model`, a name in BUILT_IN, or the path of a .jinja file.
        model_dir: the base model's folder.

    Raises:
        UserError: there is no such template, the model has none of its own, or it lacks what is to be written into it.
    """
    setting = data.template
    file = (
        model_dir / filenames.CHAT_TEMPLATE if setting == "model" else BUILT_IN.get(setting, paths.data_file(setting))
    )
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        inside = of_folder(model_dir) if setting == "model" else None
        if inside is None:
            known = ", ".join(["model", *BUILT_IN])
            raise UserError(
                f"--data.template {setting}: {paths.label(file)} is not there; known are {known}, or a .jinja file"
            ) from error
        text = inside
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--data.template {setting}: cannot read {paths.label(file)} ({error})") from error
    return bake(text, data.system_prompt, data.thinking, data.date)


def of_folder(model_dir: Path) -> str | None:
    """The chat template in a tokenizer's folder: in a file of its own, or, in older ones, in the tokenizer's config."""
    if (model_dir / filenames.CHAT_TEMPLATE).exists():
        return (model_dir / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    file = model_dir / filenames.TOKENIZER_CONFIG
    settings = atomic.read_json(file) if file.exists() else {}
    text = settings.get("chat_template")
    if isinstance(text, list):  # several, by name
        text = next((named["template"] for named in text if named.get("name") == "default"), None)
    return text if isinstance(text, str) else None


def bake(text: str, system_prompt: str | None = None, thinking: bool | None = None, date: datetime.date = TODAY) -> str:
    """A template into which everything is written that could differ between training and serving.

    Args:
        system_prompt: for conversations without a system message; None leaves the template as it is.
        thinking: the value of the flags by which templates open a block of thought; None leaves their default.
        date: what the template gets when it asks for today's date.

    Raises:
        UserError: `thinking` is given and the template has no such flag, or it asks for the date in an unknown way.
    """
    fixed = ""
    if thinking is not None:
        flags = thinking_flags(text)
        if not flags:
            raise UserError(f"--data.thinking {str(thinking).lower()}: the chat template has no thinking flag")
        fixed += "".join("{%- set " + flag + " = " + str(thinking).lower() + " -%}" for flag in flags)
    if "strftime_now" in text:
        fixed += _fixed_date(text, date)
    if system_prompt is not None:
        literal = json.dumps(system_prompt, ensure_ascii=False)  # a JSON string is also a Jinja string
        fixed += (
            "{%- if messages[0]['role'] != 'system' -%}"
            "{%- set messages = [{'role': 'system', 'content': " + literal + "}] + messages -%}"
            "{%- endif -%}"
        )
    # The empty {{ '' }} keeps the next line break, which Jinja would remove after a block.
    return fixed + "{{ '' }}" + text if fixed else text


def thinking_flags(text: str) -> list[str]:
    """The names of the flags by which a template opens a block of thought."""
    return [flag for flag in THINKING_FLAGS if re.search(rf"(?<![.\w'\"]){flag}\b(?!['\"])", text)]


def _fixed_date(text: str, date: datetime.date) -> str:
    """A macro that takes the place of the function from which templates get the time."""
    calls = re.findall(r"strftime_now\s*\(\s*(.)", text)
    formats = dict.fromkeys(form for _, form in re.findall(r"strftime_now\s*\(\s*(['\"])(.*?)\1\s*\)", text))
    constant_calls = re.findall(r"strftime_now\s*\(\s*(?:'[^']*'|\"[^\"]*\")\s*\)", text)
    if len(calls) != len(constant_calls):  # a format that is computed could be anything
        raise UserError(
            "the chat template asks for the date in a way that cannot be fixed: choose another --data.template"
        )
    cases = "".join(
        "{%- if format == " + json.dumps(form) + " -%}{{- " + json.dumps(date.strftime(form)) + " -}}{%- endif -%}"
        for form in formats
    )
    macro = "{%- macro strftime_now(format) -%}" + cases + "{%- endmacro -%}"
    # in Llama's templates a request may bring a date of its own
    shadow = "{%- set date_string = " + json.dumps(date.strftime(next(iter(formats)))) + " -%}" if formats else ""
    return macro + (shadow if "date_string" in text else "")
