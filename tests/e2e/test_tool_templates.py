"""vLLM's own parsers of tool calls, against the templates of families as TRL carries them."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import tiny, tokenizer_families
from tokenizers import AddedToken

from lockstep.prompts import contract
from lockstep.prompts.template import Template
from lockstep.serving import tool_parsers
from lockstep.settings.schema import Data

pytestmark = pytest.mark.e2e
TEMPLATES = tokenizer_families.TRL_TEMPLATES
MARKS = re.compile(r"<\|[^|<>\s]+\|>|</?(?:think|tool_call)>")


def chat(name: str, *more: str) -> Template:
    """A family's template with a small tokenizer that has its marks."""
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tiny.tokenizer()
    ordinary = ("think", "tool_call")
    marks = [AddedToken(m, special=not any(o in m for o in ordinary)) for m in {*MARKS.findall(text), *more}]
    tokenizer.add_tokens(sorted(marks, key=str))
    tokenizer.bos_token = "<|endoftext|>"
    return Template(tokenizer, text)


def test_the_names_are_those_of_the_installed_vllm() -> None:
    from vllm.tool_parsers import ToolParserManager

    assert sorted([*tool_parsers.PARSERS, "hf", "openai"]) == ToolParserManager.list_registered()


@pytest.mark.parametrize(
    ("family", "reasoning", "parser"),
    [
        ("qwen2_5", None, "hermes"),
        ("qwen3_instruct_2507", None, "hermes"),
        ("qwen3", None, "hermes"),
        ("qwen3", "qwen3", "hermes"),
        ("qwen3_5_nothink", None, "qwen3_coder"),
        ("qwen3_5_think", "qwen3", "qwen3_coder"),
        ("llama3_1", None, "llama3_json"),
        ("lfm2_2_5", None, "lfm2"),
    ],
)
def test_a_familys_calls_are_read_back(family: str, reasoning: str | None, parser: str) -> None:
    template = chat(family, "<|python_tag|>")
    fitting = (name for name in tool_parsers.PARSERS if tool_parsers.reads(template, name, reasoning))
    assert next(fitting) == parser


@pytest.mark.parametrize(
    ("family", "parser"),
    [
        ("qwen2_5", "qwen3_coder"),  # another format
        ("llama3_1", "hermes"),
        ("muse_glimmer", "muse_glimmer"),  # beside tools it streams nothing of a plain answer
        ("gptoss", "hermes"),  # its template writes no answer after its own prompt
    ],
)
def test_a_parser_that_loses_something_is_not_taken(family: str, parser: str) -> None:
    assert not tool_parsers.reads(chat(family), parser)


def test_the_search_in_its_own_process_gives_the_name(tmp_path: Path) -> None:
    template = chat("qwen2_5")
    template.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template.text, encoding="utf-8")
    assert tool_parsers.choose("auto", tmp_path, None, tmp_path / "note.json") == "hermes"


FAMILIES = (
    "qwen2_5", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "llama3_1", "llama3_2", "lfm2_2_5", "gptoss",
    "nemotron_3_nano",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_conversations_with_calls_render_as_vllm_renders_the_request(family: str) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.chat_utils import parse_chat_messages

    template = chat(family)
    agreed = contract.build(template, Data())
    config = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False)
    for conversation in agreed["conversations"]:
        asked = {key: copy.deepcopy(conversation[key]) for key in ("messages", "tools") if key in conversation}
        request = ChatCompletionRequest.model_validate(asked)
        messages, _, _ = parse_chat_messages(request.messages, config, "string")
        tools = [tool.model_dump() for tool in request.tools] if request.tools else None
        ids = template.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=False
        )
        assert ids == conversation["prompt_ids"], conversation["name"]
    assert {"a tool", "a call and its result"} <= {one["name"] for one in agreed["conversations"]} | {
        *agreed["left_out"]
    }
