"""The parser by which vLLM reads tool calls out of a run's answers: one that is seen to read them.

vLLM has some fifty parsers and leaves the choice to whoever starts it. Here the run's own template writes calls as the
model was trained to write them, and a parser is taken if it gives the same calls back, whole and in pieces as they
stream, and leaves other answers as they are. vLLM takes seconds to import, so a process of its own tries that.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model import vllm_table
from lockstep.processes import child_processes
from lockstep.prompts import template
from lockstep.prompts.template import Message, Refused, Template

AUTO, NONE = "auto", "none"
# vLLM's parsers; the first four are tried first, as several of the others read what the most common templates write.
PARSERS = (
    "hermes", "qwen3_coder", "llama3_json", "mistral", "apertus", "cohere_command3", "cohere_command4", "deepseek_v3",
    "deepseek_v31", "deepseek_v32", "deepseek_v4", "deepseek_v41", "dots", "ernie45", "functiongemma", "gemma4",
    "gigachat3", "glm45", "glm47", "granite", "granite-20b-fc", "granite4", "hunyuan_a13b", "hy_v3", "hy_v4", "inkling",
    "internlm", "jamba", "k2_horizon", "kimi_k2", "kimi_k3", "lfm2", "ling3", "llama4_json", "llama4_pythonic",
    "longcat", "mimo", "minicpm5", "minimax_m2", "minimax_m3", "muse_glimmer", "olmo3", "phi4_mini_json", "plamo3",
    "poolside_v1", "pythonic", "qwen3_json", "qwen3_xml", "seed_oss", "step3", "step3p5", "xlam",
)  # fmt: skip
NOTE = "tool_parser.json"  # beside the server's log: what was chosen, and of which template
PATIENCE = 300.0  # seconds, on a busy machine
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
                "parts": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    },
}
ASK: list[Message] = [{"role": "user", "content": "北京天气怎么样？"}]
ARGUMENTS = ({"city": '北京 "东城" & <西城>', "days": 3, "metric": True, "parts": ["a", "b c"]}, {"city": "Paris"})
# Answers that are no calls, and must stay what they are.
PLAIN = (" Sunny.\n\n- 18 °C <b>&</b> `calm`\n", "你好，明天是晴天。🙂", "```python\nget_weather(city='Paris')\n```")
# Beside tools, Llama 3's parser takes any object for the beginning of a call.
PLAIN_WITHOUT_TOOLS = ('{"city": "Paris", "days": [1, 2]}', '{"name": "get_weather", "parameters": {"city": "Paris"}}')
STEPS = (1, 5)  # tokens in a piece of a stream: more come at once while the server is busy
# What a parser can raise over a text or a tokenizer that is not for it.
FAILURES = (*template.FAILURES, AssertionError, ImportError, NotImplementedError, OSError, RuntimeError)


def choose(setting: str, folder: Path, reasoning_parser: str | None, note: Path) -> str:
    """The name of the parser for a run's answers; empty where there is none.

    Args:
        setting: `auto`, `none`, or a parser's name, which is taken without being tried.
        folder: with the tokenizer and template that the server answers with.
        reasoning_parser: vLLM's for the same answers, which takes the thoughts out first.
        note: file in which the choice is kept, so that only the first start takes the time.

    Raises:
        UserError: vLLM has no such parser, or its parsers could not be tried.
    """
    if setting not in (AUTO, NONE, *PARSERS):
        near = difflib.get_close_matches(setting, PARSERS, 1)
        if near:
            raise UserError(
                f"--serve.tool_call_parser {setting}: no parser of vLLM's (did you mean {near[0]}?); auto looks for "
                "the one that fits"
            )
        raise UserError(f"--serve.tool_call_parser {setting}: no parser of vLLM's; auto looks for the one that fits")
    if setting != AUTO:
        return "" if setting == NONE else setting
    text = (folder / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    if "tools" not in text:
        return ""
    tokenizer = (folder / filenames.TOKENIZER).read_bytes() if (folder / filenames.TOKENIZER).exists() else b""
    subject = [hashlib.sha256(content).hexdigest() for content in (text.encode(), tokenizer)]
    subject += [reasoning_parser or "", vllm_table.VERSION]
    known = atomic.read_json(note) if note.exists() else {}
    if known.get("subject") != subject:
        known = {"subject": subject, "parser": _first_that_reads(folder, text, reasoning_parser)}
        note.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(note, known)
    return str(known["parser"])


def _first_that_reads(folder: Path, text: str, reasoning_parser: str | None) -> str:
    """The first parser that reads this template's calls; empty where none does. Raises UserError."""
    with child_processes.fresh(_search, folder, text, reasoning_parser) as (child, receiver):
        try:
            if receiver.poll(PATIENCE):
                return str(receiver.recv())
        except EOFError:
            child.join()
    raise UserError("vLLM's parsers of tool calls could not be tried: name one with --serve.tool_call_parser, or none")


def _search(sender: Connection, folder: Path, text: str, reasoning: str | None) -> None:
    """In the process: send the name."""
    for stream in (1, 2):  # vLLM logs what its parsers cannot read
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    from lockstep.serving import thought_parser  # noqa: F401 - makes vLLM know it by its name

    chat = template.load(folder, text)
    sender.send(next((name for name in PARSERS if reads(chat, name, reasoning)), ""))


def reads(chat: Template, name: str, reasoning: str | None = None) -> bool:
    """Whether a parser gives back the calls that a template writes, and leaves other answers as they are.

    A template may refuse several calls in a turn; then one must be read.
    """
    try:
        answers = list(_answers_with_calls(chat))
        with_tools, without = _Parsing.of(chat, name, reasoning, [TOOL]), _Parsing.of(chat, name, reasoning, None)
        plain = _Parsing.of(chat, None, reasoning, None)
        return (
            bool(answers)
            and all(with_tools.whole(text).calls == calls for text, calls in answers)
            and all(piece.calls == calls for text, calls in answers for piece in with_tools.in_pieces(text))
            and all(_leaves(with_tools, plain, text) for text in PLAIN)
            and all(_leaves(without, plain, text) for text in (*PLAIN, *PLAIN_WITHOUT_TOOLS))
        )
    except FAILURES:
        return False


def _leaves(parsing: "_Parsing", plain: "_Parsing", text: str) -> bool:
    """Whether an answer is the same with a parser of calls as without."""
    return all(outcome == plain.whole(text) for outcome in (parsing.whole(text), *parsing.in_pieces(text)))


def _answers_with_calls(chat: Template) -> Iterator[tuple[str, list[Any]]]:
    """Texts of answers, as a model must generate them, with the calls in them as (name, arguments)."""
    calls = [
        {"id": f"call0000{place}", "function": {"arguments": arguments, "name": "get_weather"}, "type": "function"}
        for place, arguments in enumerate(ARGUMENTS)
    ]
    prompt = chat.render(ASK, [TOOL])
    for several in (calls[:1], calls):
        try:
            text = chat.answer_text([*ASK, {"role": "assistant", "content": "", "tool_calls": several}], [TOOL], prompt)
        except Refused:
            continue
        yield text, [("get_weather", arguments) for arguments, _ in zip(ARGUMENTS, several, strict=False)]


@dataclass
class _Outcome:
    """What a client gets of an answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[Any] = field(default_factory=list)


class _Parsing:
    """vLLM's parser as its server sets it up for one kind of request."""

    def __init__(self, chat: Template, parser: Any, request: Any, prompt: list[int]) -> None:
        self.chat, self.parser, self.request, self.prompt = chat, parser, request, prompt

    @classmethod
    def of(cls, chat: Template, name: str | None, reasoning: str | None, tools: list[Any] | None) -> "_Parsing":
        """For requests with or without tools. Raises FAILURES where the parser is not for this tokenizer."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser import ParserManager

        parser = ParserManager.get_parser(
            tool_parser_name=name, reasoning_parser_name=reasoning, enable_auto_tools=True, tokenizer=chat.tokenizer
        )
        request = ChatCompletionRequest.model_validate({"messages": ASK} | ({"tools": tools} if tools else {}))
        if parser and (tools or reasoning):
            request = parser(chat.tokenizer, request.tools).adjust_request(request)
        return cls(chat, parser, request, chat.prompt_ids(ASK, tools))

    def whole(self, text: str) -> _Outcome:
        """Of an answer that is sent at once."""
        ids = self.chat.encode([text])[0]
        if self.parser is None:
            return _Outcome(content=self._decoded(ids))
        parser = self.parser(self.chat.tokenizer, self.request.tools)
        parser.set_prompt_token_ids(self.prompt)
        reasoning, content, calls = parser.parse(
            self._decoded(ids), self.request, enable_auto_tools=True, model_output_token_ids=ids
        )
        return _outcome(reasoning, content, [(call.name, call.arguments) for call in calls or ()])

    def in_pieces(self, text: str) -> Iterator[_Outcome]:
        """Of the same as a stream, in pieces of several sizes."""
        ids = self.chat.encode([text])[0]
        for step in STEPS:
            yield self._streamed([ids[start : start + step] for start in range(0, len(ids), step)])

    def _streamed(self, pieces: list[list[int]]) -> _Outcome:
        parser = self.parser(self.chat.tokenizer, self.request.tools)
        texts = {"reasoning": "", "content": ""}
        calls: dict[int, tuple[str, str]] = {}
        sent, ids = "", list[int]()
        for piece in pieces:
            ids += piece
            decoded = self._decoded(ids)
            decoded = sent if decoded.endswith("�") else decoded  # half a character: the server waits for the rest
            message = parser.parse_delta(
                decoded[len(sent) :], piece, self.request, prompt_token_ids=self.prompt, finished=piece is pieces[-1]
            )
            sent = decoded
            for name in texts if message else ():
                texts[name] += getattr(message, name) or ""
            for call in (message.tool_calls or ()) if message else ():
                name, arguments = calls.get(call.index, ("", ""))
                function = call.function
                calls[call.index] = (name + (function.name or ""), arguments + (function.arguments or ""))
        return _outcome(texts["reasoning"], texts["content"], list(calls.values()))

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.chat.tokenizer.decode(ids, skip_special_tokens=self.request.skip_special_tokens))


def _outcome(reasoning: str | None, content: str | None, calls: list[tuple[str, str]]) -> _Outcome:
    return _Outcome(reasoning or "", content or "", [(name, json.loads(arguments)) for name, arguments in calls])
