"""The one renderer: the same template and the same ids in training, merging and serving.

A prompt's ids are the whole rendered prompt, encoded without added special tokens, as vLLM does
it. Only the answer is encoded apart; the end-of-turn token follows it and is supervised.
"""

import datetime
import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.prompts.token_seams import Seams
from lockstep.settings.schema import Data
from lockstep.text.unicode import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = Data().date
PROBES = ("Be brief. (a+b)*2", "你是谁？", "🙂")  # what any tokenizer should give back, and what most do
THINKING_FLAGS = ("enable_thinking", "thinking")
BUILT_IN = {"instruction_zh": Path(__file__).with_name("instruction_zh.jinja")}
INPUT_MARK = "\n\n### 输入:\n"  # where instruction_zh.jinja finds the input in a user message
_SENTINEL = "LockstepAnswer"
# A template is a program of somebody else's: all that its own faults can raise.
FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip

PATIENCE = 30.0  # seconds for a template to render one conversation

Message = dict[str, Any]


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


def source(data: Data, model_dir: Path) -> str:
    """The template that a run uses, with default system prompt, thinking flag and date written into it.

    Args:
        data: its template is `model`, a name in BUILT_IN, or the path of a .jinja file.
        model_dir: the base model's folder.

    Raises:
        UserError: no such template, the model has none of its own, or it has nothing to fix.
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
    """The chat template in a folder with a tokenizer; before templates had a file of their own it stood in another."""
    if (model_dir / filenames.CHAT_TEMPLATE).exists():
        return (model_dir / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    file = model_dir / filenames.TOKENIZER_CONFIG
    settings = atomic.read_json(file) if file.exists() else {}
    text = settings.get("chat_template")
    if isinstance(text, list):  # several, by name
        text = next((one["template"] for one in text if one.get("name") == "default"), None)
    return text if isinstance(text, str) else None


def bake(text: str, system_prompt: str | None = None, thinking: bool | None = None, date: datetime.date = TODAY) -> str:
    """A template with what could differ between training and serving written into it.

    Args:
        system_prompt: opens every conversation without a system message; None leaves the template as it is.
        thinking: shadows the flags by which templates open a block of thought; None leaves their default.
        date: what the template is told where it asks for today's.

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
        literal = json.dumps(system_prompt, ensure_ascii=False)  # a JSON string is a Jinja string, too
        fixed += (
            "{%- if messages[0]['role'] != 'system' -%}"
            "{%- set messages = [{'role': 'system', 'content': " + literal + "}] + messages -%}"
            "{%- endif -%}"
        )
    # The empty {{ '' }} keeps the next line break, which Jinja would take away after a block.
    return fixed + "{{ '' }}" + text if fixed else text


def thinking_flags(text: str) -> list[str]:
    """The names of the flags by which a template opens a block of thought."""
    return [flag for flag in THINKING_FLAGS if re.search(rf"(?<![.\w'\"]){flag}\b(?!['\"])", text)]


def _fixed_date(text: str, date: datetime.date) -> str:
    """A macro in the place of the function that tells templates the time."""
    calls = re.findall(r"strftime_now\s*\(\s*(.)", text)
    formats = dict.fromkeys(found[1] for found in re.findall(r"strftime_now\s*\(\s*(['\"])(.*?)\1\s*\)", text))
    if len(calls) != len(re.findall(r"strftime_now\s*\(\s*(?:'[^']*'|\"[^\"]*\")\s*\)", text)):
        raise UserError(
            "the chat template asks for the date in a way that cannot be fixed: choose another --data.template"
        )
    cases = "".join(
        "{%- if format == " + json.dumps(form) + " -%}{{- " + json.dumps(date.strftime(form)) + " -}}{%- endif -%}"
        for form in formats
    )
    macro = "{%- macro strftime_now(format) -%}" + cases + "{%- endmacro -%}"
    # Llama's templates take a date that a request may bring
    shadow = "{%- set date_string = " + json.dumps(date.strftime(next(iter(formats)))) + " -%}" if formats else ""
    return macro + (shadow if "date_string" in text else "")


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise UserError in a template that takes longer: one that was looked at may still loop over somebody's own row."""
    if threading.current_thread() is not threading.main_thread():  # where no signal can be taken
        yield
        return

    def over(*_: object) -> None:
        raise UserError(
            f"the chat template takes more than {seconds:.0f} s for one row: choose another --data.template"
        )

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Refused(UserError):
    """The template fails on a conversation."""


class Dropped(Refused):
    """The template leaves a part of the conversation out."""


class Template:
    """A tokenizer with a run's chat template.

    Args:
        allowed: added tokens that texts may hold.

    Attributes:
        text: the Jinja source.
        end_text: what follows an answer, up to and with the end-of-turn token.
        end_ids: its token ids.
        end_of_turn: the last of them.

    Raises:
        UserError: the template fails, or puts no control token after an answer, so that a model
            trained with it would never learn to stop.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str, allowed: Sequence[str] = ()) -> None:
        self.tokenizer, self.text = tokenizer, text
        tokenizer.chat_template = text
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        if unknown := set(allowed) - set(added):
            raise UserError(f"--data.allow_tokens: {', '.join(sorted(unknown))} is no added token of this tokenizer")
        # Runs of spaces (▁ for some tokenizers) are added tokens, too; they control nothing.
        controls = {token for token in added if token.strip().strip("▁")} - set(allowed)
        self._control = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or "(?!)")
        self._seams = Seams(controls, text)
        self.end_text = self._find_end()
        self.end_ids = self.encode([self.end_text])[0]
        self.end_of_turn = self.end_ids[-1]
        # SentencePiece puts a space before a text's first word; an answer never is a text's beginning.
        self._marks_starts = self.encode(["a"])[0] != self.encode([self.end_text + "a"])[0][len(self.end_ids) :]

    @property
    def stop_ids(self) -> list[int]:
        """The ids at which a model trained with this template stops: end of turn, and the tokenizer's eos."""
        return [one for one in dict.fromkeys([self.end_of_turn, self.tokenizer.eos_token_id]) if one is not None]

    @property
    def special_ids(self) -> dict[str, int | None]:
        """The ids of bos, eos, pad and end_of_turn."""
        made = self.tokenizer
        return {
            "bos": made.bos_token_id, "eos": made.eos_token_id, "pad": made.pad_token_id, "end_of_turn": self.end_of_turn,
        }  # fmt: skip

    @property
    def starts_with_bos(self) -> bool:
        """Whether the tokenizer by itself begins a text with a token for that."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and cast(list[int], self.tokenizer.encode("a"))[0] == bos

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """The prompt that asks for the next answer, as text. Raises Refused."""
        return self._apply(messages, tools, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The prompt's token ids, equal to those of the server for the same messages. Raises Refused."""
        return self.encode([self.render(messages, tools)])[0]

    def answer_text(self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: str) -> str:
        """What a model must say to give the last message, without the end of the turn.

        An answer of text is that text, byte for byte. For tool calls and reasoning it is what the
        template adds to the prompt.

        Raises:
            Refused: the template writes such an answer in a way that no model can give.
            Dropped: it leaves a part of the answer out.
        """
        message = messages[-1]
        if not (message.get("tool_calls") or message.get("reasoning_content")):
            return str(message["content"])
        whole = self._apply(messages, tools, add_generation_prompt=False)
        answer, end, rest = whole.removeprefix(prompt).rpartition(self.end_text)
        if not whole.startswith(prompt) or not end or rest.strip():
            raise Refused("the chat template does not write this answer after its own prompt")
        calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
        for part in (message["content"], message.get("reasoning_content", ""), *calls):
            if part.strip() not in answer:
                raise Dropped(f"of the answer: {part:.80}")
        if any(answer.count(name) < calls.count(name) for name in calls):
            raise Dropped(f"one of {len(calls)} calls")
        return answer

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Each answer's token ids and the end of the turn: what is supervised."""
        before = self.end_text if self._marks_starts else ""
        encoded = self.encode([before + answer for answer in answers])
        return [ids[len(self.end_ids) if before else 0 :] + self.end_ids for ids in encoded]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without added special tokens."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return cast(list[list[int]], encoded["input_ids"])

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts that token ids stand for, control tokens too, with nothing tidied up."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is not None:
            return cast(list[str], core.decode_batch([list(one) for one in ids], skip_special_tokens=False))
        return [cast(str, self.tokenizer.decode(one, clean_up_tokenization_spaces=False)) for one in ids]

    def spelled(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """The texts of what `answer_ids` gave, without the end of the turn."""
        if not self._marks_starts:
            return self.decode([ids[: -len(self.end_ids)] for ids in answers])
        texts = self.decode([[*self.end_ids, *ids[: -len(self.end_ids)]] for ids in answers])
        return [text[len(self.end_text) :] for text in texts]

    def control_token(self, text: str) -> str | None:
        """The first added token of the tokenizer in a text, which would act as a control token."""
        match = self._control.search(text)
        if match is None and not text.isascii():
            match = self._control.search(self._normalized(text))
        return match.group() if match else None

    def seam_token(self, texts: Sequence[str]) -> str | None:
        """A control token that a conversation's texts, none of which holds one, could become where two of them meet."""
        return self._seams.token([text if text.isascii() else self._normalized(text) for text in texts])

    def _normalized(self, text: str) -> str:
        """The text as the tokenizer sees it: some fold ＜ to <, and a token may appear."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        return cast(str, core.normalizer.normalize_str(text)) if core and core.normalizer else text

    def _apply(self, messages: Sequence[Message], tools: Sequence[Any] | None, add_generation_prompt: bool) -> str:
        try:
            with _at_most(PATIENCE):
                rendered = self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=tools and list(tools),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
        except FAILURES as error:
            reason = str(error) or type(error).__name__
            raise Refused(f"the chat template fails on {list(messages)!r:.80}: {reason}") from error
        text = cast(str, rendered)
        if printable(text) != text:
            raise Refused(f"the chat template writes half a character (a lone surrogate) on {list(messages)!r:.80}")
        return text

    def _find_end(self) -> str:
        conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
        after = self._apply(conversation, None, add_generation_prompt=False).rpartition(_SENTINEL)[2]
        end = self._control.search(after)
        if end is None or after[: end.start()].strip():
            raise UserError(
                "the chat template puts no control token right after an answer: a model trained "
                "with it would never stop; choose another --data.template"
            )
        return after[: end.end()]


def load(model_dir: Path, text: str, allowed: Sequence[str] = ()) -> Template:
    """The tokenizer of a model folder with a template's source.

    transformers 5 builds the tokenizer of some classes anew instead of reading tokenizer.json; with
    byte-level files that name another class (copies of DeepSeek's, say) spaces and Chinese vanish
    without a word. Then tokenizer.json is taken as it is, and saved so with adapter and merged model.

    Raises:
        UserError: no tokenizer, or one that loses plain text either way.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    if not all(_keeps(tokenizer, probe) for probe in PROBES) and (model_dir / filenames.TOKENIZER).exists():
        plain = PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
        tokenizer = plain if all(_keeps(plain, probe) for probe in PROBES) else tokenizer
    if not _keeps(tokenizer, PROBES[0]):
        raise UserError(
            f"the tokenizer of {paths.label(model_dir)} does not give {PROBES[0]!r} back: its files do not fit together"
        )
    return Template(tokenizer, text, allowed)


def _keeps(tokenizer: "PreTrainedTokenizerBase", text: str) -> bool:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return cast(str, tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip() == text
