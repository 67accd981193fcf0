"""Rendering conversations: the same template and the same token ids in training, merging and serving.

A prompt is rendered and encoded as a whole, without added special tokens, as vLLM does it. Only the answer is encoded
by itself; the end-of-turn token follows it and is supervised.
"""

import json
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError

from lockstep.errors import UserError
from lockstep.prompts import answer_tokens, text_tokens, tokenizer_folder
from lockstep.prompts.token_seams import Seams, cut_words
from lockstep.text.unicode import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTINEL = "LockstepAnswer"
# A template is somebody else's program: these are the errors that its faults can raise.
FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip

MOST_CUTS = 4  # times that words are cut out of a text, one after the other; templates do it once or twice
PATIENCE = 30.0  # seconds for a template to render one conversation

Message = dict[str, Any]


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise UserError if a template takes longer: it may loop over a row although it was inspected before."""
    if threading.current_thread() is not threading.main_thread():  # signals only reach the main thread
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
        as_text: added tokens of the base model's tokenizer that this one encodes in ordinary pieces.

    Attributes:
        text: the Jinja source.
        text_tokens: `as_text`.
        end_text: what follows an answer, up to and including the end-of-turn token.
        end_ids: the token ids of `end_text`.
        end_of_turn: the last of them.

    Raises:
        UserError: the template fails, or writes no control token after an answer, so that a model trained with it
            would never learn to stop.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", text: str, allowed: Sequence[str] = (), as_text: Sequence[str] = ()
    ) -> None:
        self.tokenizer, self.text, self.text_tokens = tokenizer, text, list(as_text)
        self._text_token = _any_of(as_text)
        tokenizer.chat_template = text
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        if unknown := set(allowed) - set(added):
            raise UserError(
                f"--data.allow_tokens: {', '.join(sorted(unknown))} is not an added token of this tokenizer"
            )
        # Runs of spaces (▁ in some tokenizers) are added tokens, too, but control nothing.
        controls = {token for token in added if token.strip().strip("▁")} - set(allowed)
        self._controls = controls
        self._control = _any_of(controls)
        self._seams = Seams(controls, text)
        self.end_text = self._find_end()
        self.end_ids = self.encode([self.end_text])[0]
        self.end_of_turn = self.end_ids[-1]
        # SentencePiece puts a space before the first word of a text, and an answer never begins a text.
        self._marks_starts = self.encode(["a"])[0] != self.encode([self.end_text + "a"])[0][len(self.end_ids) :]

    @property
    def stop_ids(self) -> list[int]:
        """The ids at which a model trained with this template stops: end of turn, and the tokenizer's eos."""
        ids = dict.fromkeys([self.end_of_turn, self.tokenizer.eos_token_id])  # each once, in this order
        return [token for token in ids if token is not None]

    @property
    def special_ids(self) -> dict[str, int | None]:
        """The ids of bos, eos, pad and end_of_turn."""
        return {
            "bos": self.tokenizer.bos_token_id,
            "eos": self.tokenizer.eos_token_id,
            "pad": self.tokenizer.pad_token_id,
            "end_of_turn": self.end_of_turn,
        }

    @property
    def starts_with_bos(self) -> bool:
        """Whether the tokenizer by itself puts its bos token at the beginning of a text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and cast(list[int], self.tokenizer.encode("a"))[0] == bos

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """The text of the prompt for the next answer. Raises Refused."""
        return self._apply(messages, tools, add_generation_prompt=True)

    def whole(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """The text of a conversation as it is, without the beginning of another answer. Raises Refused."""
        return self._apply(messages, tools, add_generation_prompt=False)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The token ids of the prompt, equal to those of the server for the same messages. Raises Refused."""
        return self.encode([self.render(messages, tools)])[0]

    def answer_text(self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: str) -> str:
        """What a model must generate to give the last message, without the end of the turn.

        For an answer that is plain text it is that text, byte for byte. For tool calls and thoughts, which may stand
        apart or in the text, it is what the template adds to the prompt. Some templates leave thoughts out of every
        answer that they write, and open one in their prompts: there it is the text, after what opens it.

        Raises:
            Refused: the template writes the answer in a form that no model can generate.
            Dropped: it omits a part of the answer.
        """
        message = messages[-1]
        marks = self._control.findall(message["content"])
        if not (marks or message.get("tool_calls") or message.get("reasoning_content")):
            return str(message["content"])
        try:
            return self._answer_as_written(messages, tools, prompt, marks)
        except Refused:
            if not self.opens_a_thought(prompt) or message.get("tool_calls") or message.get("reasoning_content"):
                raise
            assert self.thought_marks
            text = str(message["content"])
            opened = text.lstrip().startswith(self.thought_marks[0])
            return text.lstrip().removeprefix(self.thought_marks[0]).lstrip("\n") if opened else text

    def _answer_as_written(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: str, marks: Sequence[str]
    ) -> str:
        """What the template adds to the prompt for the last message. Raises Refused, Dropped."""
        message, whole = messages[-1], self.whole(messages, tools)
        answer, end, rest = whole.removeprefix(prompt).rpartition(self.end_text)
        if not whole.startswith(prompt) or not end or rest.strip():
            raise Refused("the chat template does not write this answer after its own prompt")
        calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
        for part in (*self._control.split(message["content"]), message.get("reasoning_content", ""), *calls):
            if part.strip() not in answer:
                raise Dropped(f"of the answer: {part:.80}")
        for kind, parts in (("calls", calls), ("control tokens", list(marks))):
            if any((prompt + answer).count(part) < parts.count(part) for part in parts):
                raise Dropped(f"one of {len(parts)} {kind}")
        return answer

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The token ids of each answer and of the end of its turn: what is supervised."""
        before = self.end_text if self._marks_starts else ""
        encoded = self.encode([before + answer for answer in answers])
        return [ids[len(self.end_ids) if before else 0 :] + self.end_ids for ids in encoded]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts, without added special tokens."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return cast(list[list[int]], encoded["input_ids"])

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of token ids, including control tokens, without any clean-up."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is not None:
            return cast(list[str], core.decode_batch([list(row) for row in ids], skip_special_tokens=False))
        return [cast(str, self.tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in ids]

    def spelled(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """The texts of what `answer_ids` returned, without the end of the turn."""
        if not self._marks_starts:
            return self.decode([ids[: -len(self.end_ids)] for ids in answers])
        texts = self.decode([[*self.end_ids, *ids[: -len(self.end_ids)]] for ids in answers])
        return [text[len(self.end_text) :] for text in texts]

    def control_token(self, text: str, by_assistant: bool = False) -> str | None:
        """The first added token of the tokenizer in a text, where it would act as a control token; or None.

        Also one that arises where the template cuts a word out of the text, such as a mark of thoughts.

        Args:
            by_assistant: whether the text is an assistant's own words, see `answer_tokens`.
        """
        pattern = self._not_in_answers if by_assistant else self._control
        match = pattern.search(text)
        if match is None and not text.isascii():
            text = self.normalized(text)
            match = pattern.search(text)
        for pieces in () if match else self._cuts(text):
            if match := pattern.search("".join(pieces)):
                break
        return match.group() if match else None

    def text_token(self, text: str) -> str | None:
        """The first word in a text that is an added token of the base's tokenizer, and text here; or None."""
        match = self._text_token.search(text)
        return match.group() if match else None

    @cached_property
    def answer_tokens(self) -> set[str]:
        """Control tokens that an assistant's own words may hold."""
        return answer_tokens.of(self, sorted(self._controls))

    def has_meaning(self, token: str) -> bool:
        """Whether a control token is one by the template or by its name, and not only because it was added."""
        added = {other.content: other.special for other in self.tokenizer.added_tokens_decoder.values()}
        roles = {str(name) for name in self.tokenizer.special_tokens_map.values()}
        return token in self.text or token in roles or text_tokens.opens_or_ends_a_turn(token, added[token])

    @cached_property
    def thought_marks(self) -> tuple[str, str] | None:
        """The tokens that begin and end a thought in answers; None where the template has none."""
        return answer_tokens.thought_marks(self, self.answer_tokens)

    @cached_property
    def thought_label(self) -> str:
        """What the template writes between the first of these tokens and the thought, such as Gemma 4's `thought`."""
        begin, _, label = answer_tokens.around_a_thought(self, sorted(self.answer_tokens))
        return label if self.thought_marks and begin == self.thought_marks[0] else ""

    def opens_a_thought(self, prompt: str) -> bool:
        """Whether a prompt ends in a thought that the answer goes on with."""
        if self.thought_marks is None:
            return False
        begin = self.thought_marks[0]
        return prompt.rstrip().endswith((begin, begin + self.thought_label.rstrip()))

    @property
    def turn_tokens(self) -> set[str]:
        """Control tokens that nobody's words may hold."""
        return self._controls - self.answer_tokens

    @cached_property
    def _not_in_answers(self) -> re.Pattern[str]:
        return _any_of(self.turn_tokens)

    def seam_token(self, texts: Sequence[str]) -> str | None:
        """A control token that could arise where two texts of a conversation meet, though neither contains it."""
        whole = [text if text.isascii() else self.normalized(text) for text in texts]
        return self._seams.token([*whole, *self.pieces(whole)])

    def pieces(self, texts: Iterable[str]) -> list[str]:
        """What stands between the words that the template cuts out of texts, each once; none of texts without them.

        It may leave out what is between two of them, too, such as a thought.
        """
        return list({piece: None for text in texts for pieces in self._cuts(text) for piece in pieces})

    def _cuts(self, text: str) -> Iterator[list[str]]:
        """The pieces of a text between cut words; then those of what is left, where cutting brings about others."""
        for _ in range(MOST_CUTS):
            pieces = self._cut.split(text)
            if len(pieces) == 1:
                return
            yield pieces
            text = "".join(pieces)

    @cached_property
    def _cut(self) -> re.Pattern[str]:
        return _any_of({*cut_words(self.text), *self.answer_tokens})

    def normalized(self, text: str) -> str:
        """The text as the tokenizer sees it: some turn ＜ into <, and a control token may appear."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        return cast(str, core.normalizer.normalize_str(text)) if core and core.normalizer else text

    def _apply(self, messages: Sequence[Message], tools: Sequence[Any] | None, add_generation_prompt: bool) -> str:
        try:
            with _at_most(PATIENCE):
                rendered = self.tokenizer.apply_chat_template(
                    [_with_objects(message) for message in messages],
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


def _with_objects(message: Message) -> Message:
    """A message whose calls have objects for arguments, as servers hand them to templates; requests have JSON texts."""
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function", {})
        if isinstance(arguments := function.get("arguments"), str):
            call = {**call, "function": {**function, "arguments": json.loads(arguments)}}
        calls.append(call)
    return {**message, "tool_calls": calls} if calls else message


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def load(model_dir: Path, text: str, allowed: Sequence[str] = (), as_text: Sequence[str] = ()) -> Template:
    """The tokenizer of a model folder, with the source of a template.

    Args:
        as_text: added tokens to be encoded in ordinary pieces (see `text_tokens`); a tokenizer that was saved with a
            run encodes them so already.

    Raises:
        UserError: there is no tokenizer, or it loses plain text.
    """
    tokenizer = tokenizer_folder.load(model_dir)
    if as_text:
        tokenizer = text_tokens.as_text(tokenizer, as_text)
    return Template(tokenizer, text, allowed, as_text)
