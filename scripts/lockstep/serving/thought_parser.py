"""vLLM's engine for answers with thoughts, set up by the template that a run was trained with.

vLLM's own parsers take everything for a thought until a mark ends it, and so the whole of a plain answer: right for
prompts that open a thought, wrong for those that leave it to the model. This one starts as the run's prompts end. Where
these open a thought and not all rows hold one, an answer is a thought only once a mark has ended it: until then its
pieces are held back. Line breaks around the marks, which templates write, belong to neither part, and nor does the name
of a channel, so that an answer that is sent back as `reasoning` and `content` is rendered as it was trained.

vLLM loads this file by its flag --reasoning-parser-plugin; lockstep imports it in processes that have vLLM anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.engine.adapters import ParserEngineReasoningAdapter
from vllm.parser.engine.events import EventType
from vllm.parser.engine.parser_engine import ParserEngine
from vllm.parser.engine.parser_engine_config import ParserEngineConfig, ParserState, Transition
from vllm.reasoning import ReasoningParserManager

from lockstep.artifacts import atomic, filenames
from lockstep.prompts.template import Template

NAME = "lockstep"  # of --reasoning-parser
_ASK = [{"role": "user", "content": "?"}]


@dataclass(frozen=True)
class _SetUp:
    """How a run's answers are read.

    Args:
        config: of vLLM's engine.
        opened: prompts open a thought.
        plain_too: answers of such a run may hold none all the same.
        special: the marks are special tokens.
        end: the mark that ends a thought.
        label: what stands between the first mark and the thought.
    """

    config: ParserEngineConfig
    opened: bool
    plain_too: bool
    special: bool
    end: str
    label: str


@cache
def _set_up(tokenizer: Any) -> _SetUp:
    """How answers are read that a tokenizer and its template belong to.

    Raises:
        ValueError: the template has no marks of thoughts.
    """
    chat = Template(tokenizer, tokenizer.chat_template)
    if chat.thought_marks is None:
        raise ValueError("the chat template has no marks of thoughts")
    begin, end = chat.thought_marks
    opened = chat.opens_a_thought(chat.render(_ASK))
    marks = {"THINK_START": begin, "THINK_END": end}
    reasoning, content = ParserState.REASONING, ParserState.CONTENT
    config = ParserEngineConfig(
        name=NAME,
        initial_state=reasoning if opened else content,
        wait_for_reasoning=True,
        turn_boundary_tokens=frozenset(chat.turn_tokens),
        terminals=dict(marks),
        token_id_terminals=marks,
        transitions={
            (content, "THINK_START"): Transition(reasoning, (EventType.REASONING_START,)),
            (content, "THINK_END"): Transition(content, ()),
            (reasoning, "THINK_START"): Transition(reasoning, ()),
            (reasoning, "THINK_END"): Transition(content, (EventType.REASONING_END,)),
        },
    )
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    contract = Path(tokenizer.name_or_path) / filenames.CONTRACT
    agreed = atomic.read_json(contract) if contract.exists() else {}
    plain_too = opened and agreed.get("rows_with_thoughts", 0) < agreed.get("rows", 0)
    return _SetUp(config, opened, plain_too, bool(special & {begin, end}), end, chat.thought_label)


class ThoughtEngine(ParserEngine):  # type: ignore[misc]
    """The engine with this set-up."""

    def __init__(self, tokenizer: Any, tools: Any = None, **more: Any) -> None:
        super().__init__(tokenizer, tools, parser_engine_config=_set_up(tokenizer).config, **more)


class ThoughtParser(ParserEngineReasoningAdapter):  # type: ignore[misc]
    """One for each request."""

    _parser_engine_cls = ThoughtEngine

    def __init__(self, tokenizer: Any, *args: Any, **more: Any) -> None:
        super().__init__(tokenizer, *args, **more)
        self._set_up = _set_up(tokenizer)
        self._thought = self._answer = False  # whether they have begun
        self._head = ""  # of a thought, which may be the label
        self._held = ""  # of an answer that may be a thought or none

    def adjust_request(self, request: Any) -> Any:
        """Keep marks in the text; where an answer may be plain, a grammar holds from the first token."""
        if self._set_up.special:
            request.skip_special_tokens = False
        if (not self._set_up.opened or self._set_up.plain_too) and isinstance(request, ChatCompletionRequest):
            request._grammar_from_parser = True  # vLLM's own word for it: else it would wait for a thought to end
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Thought and answer, each None where there is none."""
        if self._set_up.plain_too and self._set_up.end not in model_output:
            return None, model_output or None
        reasoning, content = super().extract_reasoning(model_output, request)
        if reasoning is None and not self._parser_engine.reasoning_ended:
            return None, content
        thought = (reasoning or "").lstrip("\n").removeprefix(self._set_up.label.lstrip("\n")).strip("\n")
        return thought or None, (content or "").lstrip("\n") or None

    def extract_reasoning_streaming(self, *texts_and_ids: Any, **by_name: Any) -> DeltaMessage | None:
        """What a piece adds to thought and answer."""
        return self._trimmed(self._judged(super().extract_reasoning_streaming(*texts_and_ids, **by_name)))

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back, as it might have been the beginning of a mark, or no thought."""
        ended = self._parser_engine.reasoning_ended
        last = super().finish_streaming()
        if self._set_up.plain_too and not ended:
            text, self._held = self._held + ((last.reasoning or "") if last else ""), ""
            text += (last.content or "") if last else ""
            self._answer = True
            return DeltaMessage(content=text) if text else None
        return self._trimmed(self._judged(last))

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """From here on pieces are no longer asked about: once the answer has begun, with or without a thought."""
        return self._answer

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Those of the answer, in a piece in which it begins."""
        end = self._parser_engine._reasoning_end_token_id
        return input_ids[input_ids.index(end) + 1 :] if end in input_ids else input_ids

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Tokens between the marks, and before the first end where prompts open a thought."""
        engine, inside, count = self._parser_engine, self._set_up.opened, 0
        if self._set_up.plain_too and engine._reasoning_end_token_id not in token_ids:
            return 0
        for token in token_ids:
            if token in (engine._reasoning_start_token_id, engine._reasoning_end_token_id):
                inside = token == engine._reasoning_start_token_id
            else:
                count += inside
        return count

    def _judged(self, message: DeltaMessage | None) -> DeltaMessage | None:
        """A piece, once it is known whether it is of a thought."""
        if message is None or not self._set_up.plain_too:
            return message
        self._held += message.reasoning or ""
        message.reasoning = None
        if self._parser_engine.reasoning_ended:
            message.reasoning, self._held = self._held or None, ""
        return message

    def _trimmed(self, message: DeltaMessage | None) -> DeltaMessage | None:
        """Without line breaks and label where a thought begins, and without line breaks where an answer follows it."""
        if message is None:
            return None
        if message.reasoning and not self._thought:
            label = self._set_up.label.lstrip("\n")
            self._head = (self._head + message.reasoning).lstrip("\n")
            waits = len(self._head) < len(label) and label.startswith(self._head)
            message.reasoning = None if waits else self._head.removeprefix(label).lstrip("\n") or None
            self._thought = message.reasoning is not None
        if message.content and not self._answer:
            after_thought = self._thought or self._parser_engine.reasoning_ended
            message.content = (message.content.lstrip("\n") if after_thought else message.content) or None
            self._answer = message.content is not None
        empty = message.reasoning is None and message.content is None and not message.tool_calls
        return None if empty else message


ReasoningParserManager.register_module(NAME, module=ThoughtParser)
