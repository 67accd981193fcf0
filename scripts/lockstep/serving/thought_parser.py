"""vLLM's engine for answers with thoughts, set up by the template that a run was trained with.

vLLM's own parsers take everything for a thought until a mark ends it, and so the whole of a plain answer: right for
prompts that open a thought, wrong for those that leave it to the model. This one starts as the run's prompts end.
Line breaks around the marks, which templates write, belong to neither part, so that an answer that is sent back as
`reasoning` and `content` is rendered as it was trained.

vLLM loads this file by its flag --reasoning-parser-plugin; lockstep imports it in processes that have vLLM anyway.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.engine.adapters import ParserEngineReasoningAdapter
from vllm.parser.engine.events import EventType
from vllm.parser.engine.parser_engine import ParserEngine
from vllm.parser.engine.parser_engine_config import ParserEngineConfig, ParserState, Transition
from vllm.reasoning import ReasoningParserManager

from lockstep.prompts.template import Template

NAME = "lockstep"  # of --reasoning-parser
_ASK = [{"role": "user", "content": "?"}]


@cache
def _set_up(tokenizer: Any) -> tuple[ParserEngineConfig, bool, bool]:
    """What the engine goes by, whether prompts open a thought, and whether the marks are special tokens.

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
    return config, opened, bool(special & {begin, end})


class ThoughtEngine(ParserEngine):  # type: ignore[misc]
    """The engine with this set-up."""

    def __init__(self, tokenizer: Any, tools: Any = None, **more: Any) -> None:
        super().__init__(tokenizer, tools, parser_engine_config=_set_up(tokenizer)[0], **more)


class ThoughtParser(ParserEngineReasoningAdapter):  # type: ignore[misc]
    """One for each request."""

    _parser_engine_cls = ThoughtEngine

    def __init__(self, tokenizer: Any, *args: Any, **more: Any) -> None:
        super().__init__(tokenizer, *args, **more)
        _, self._opened, self._special = _set_up(tokenizer)
        self._thought = self._answer = False  # whether they have begun

    def adjust_request(self, request: Any) -> Any:
        """Keep marks in the text; without an open thought, a grammar holds from the first token."""
        if self._special:
            request.skip_special_tokens = False
        if not self._opened and isinstance(request, ChatCompletionRequest):
            request._grammar_from_parser = True  # vLLM's own word for it: else it would wait for a thought to end
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Thought and answer, each None where there is none."""
        reasoning, content = super().extract_reasoning(model_output, request)
        if reasoning is None and not self._parser_engine.reasoning_ended:
            return None, content
        return (reasoning or "").strip("\n") or None, (content or "").lstrip("\n") or None

    def extract_reasoning_streaming(self, *texts_and_ids: Any, **by_name: Any) -> DeltaMessage | None:
        """What a piece adds to thought and answer."""
        return self._trimmed(super().extract_reasoning_streaming(*texts_and_ids, **by_name))

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back, as it might have been the beginning of a mark."""
        return self._trimmed(super().finish_streaming())

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """From here on pieces are no longer asked about: once the answer has begun, with or without a thought."""
        return self._answer

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Those of the answer, in a piece in which it begins."""
        end = self._parser_engine._reasoning_end_token_id
        return input_ids[input_ids.index(end) + 1 :] if end in input_ids else input_ids

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Tokens between the marks, and before the first end where prompts open a thought."""
        engine, inside, count = self._parser_engine, self._opened, 0
        for token in token_ids:
            if token in (engine._reasoning_start_token_id, engine._reasoning_end_token_id):
                inside = token == engine._reasoning_start_token_id
            else:
                count += inside
        return count

    def _trimmed(self, message: DeltaMessage | None) -> DeltaMessage | None:
        """Without line breaks where a thought, or an answer after it, begins."""
        if message is None:
            return None
        if message.reasoning and not self._thought:
            message.reasoning = message.reasoning.lstrip("\n") or None
            self._thought = message.reasoning is not None
        if message.content and not self._answer:
            after_thought = self._thought or self._parser_engine.reasoning_ended
            message.content = (message.content.lstrip("\n") if after_thought else message.content) or None
            self._answer = message.content is not None
        empty = message.reasoning is None and message.content is None and not message.tool_calls
        return None if empty else message


ReasoningParserManager.register_module(NAME, module=ThoughtParser)
