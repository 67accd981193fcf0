"""Every field that OpenAI's clients can send is decided: taken, left out, or refused with its reason."""

import re
from typing import Any

import pytest
from openai.types import completion_create_params as of_completions
from openai.types.chat import completion_create_params as of_chat

from lockstep import paths
from lockstep.serving import request_fields, request_thinking
from lockstep.serving.request_fields import CHAT, COMPLETION, LEFT_OUT, MEANT, ONLY_AS, TAKEN, TOKENIZE

CHAT_FIELDS = {*of_chat.CompletionCreateParamsStreaming.__annotations__, "stream"}
COMPLETION_FIELDS = {*of_completions.CompletionCreateParamsBase.__annotations__, "stream"}
ROUTES = [(CHAT, CHAT_FIELDS), (COMPLETION, COMPLETION_FIELDS)]


@pytest.mark.parametrize(("route", "fields"), ROUTES)
def test_each_field_of_openais_sdk_is_decided_once(route: str, fields: set[str]) -> None:
    decided = (TAKEN[route], LEFT_OUT, set(ONLY_AS), set(request_thinking.FIELDS))
    assert len(fields) > 15
    for name in fields:
        assert sum(name in names for names in decided) == 1, f"{name} of {route}: take it, leave it out, or say why not"


@pytest.mark.parametrize("route", TAKEN)
def test_what_another_route_takes_is_refused_with_the_field_that_is_meant(route: str) -> None:
    for wrong, meant in MEANT[route].items():
        assert wrong not in TAKEN[route] and meant in TAKEN[route]
        assert f"{route} takes {meant!r}" in (request_fields.refusal(route, {wrong: 1}) or "")


def left(route: str, body: dict[str, Any]) -> dict[str, Any]:
    request_fields.tidy(route, body)
    assert request_fields.refusal(route, body) is None
    return body


@pytest.mark.parametrize(("route", "fields"), [*ROUTES, (TOKENIZE, TAKEN[TOKENIZE])])
def test_null_means_not_set_for_every_field(route: str, fields: set[str]) -> None:
    assert left(route, dict.fromkeys(fields)) == {}


@pytest.mark.parametrize("route", TAKEN)
def test_what_changes_neither_prompt_nor_decoding_never_reaches_vllm(route: str) -> None:
    assert left(route, dict.fromkeys(LEFT_OUT, "<|im_start|>")) == {}
    assert left(route, {"metadata": {"a": "<|im_end|>"}, "modalities": ["text"], "functions": [], "best_of": 1}) == {}


def test_options_of_a_stream_are_those_that_vllm_knows() -> None:
    options: dict[str, Any] = {"include_obfuscation": False, "include_usage": None}
    assert left(CHAT, {"stream": True, "stream_options": options}) == {"stream": True}
    body = left(CHAT, {"stream": True, "stream_options": {"include_obfuscation": True, "include_usage": True}})
    assert body["stream_options"] == {"include_usage": True}


def test_a_choice_among_no_tools_is_none() -> None:
    for choice in ("auto", "none", None):
        assert left(CHAT, {"tools": [], "tool_choice": choice, "parallel_tool_calls": True}) == {}
    assert left(CHAT, {"tool_choice": "required"}) == {"tool_choice": "required"}  # vLLM says that there are no tools


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("modalities", ["text", "audio"], "answers with text only"),
        ("audio", {"voice": "alloy", "format": "wav"}, "answers with text only"),
        ("web_search_options", {}, "searches nothing"),
        ("moderation", {"model": "m"}, "judges no texts"),
        ("functions", [{"name": "f"}], "older name: send tools"),
        ("function_call", {"name": "f"}, "older name: send tool_choice"),
        ("best_of", 3, "ask for n of them"),
        ("best_of", True, "ask for n of them"),
        ("chat_template", "x", "'chat_template' is not taken here"),
        ("thinking_token_budget", 5, "'thinking_token_budget' is not taken here"),
    ],
)
def test_what_asks_for_something_else_is_refused_for_its_true_reason(name: str, value: Any, why: str) -> None:
    body = {name: value}
    request_fields.tidy(CHAT, body)
    assert body == {name: value}
    assert why in (request_fields.refusal(CHAT, body) or "") and f"'{name}'" in (
        request_fields.refusal(CHAT, body) or ""
    )


@pytest.mark.parametrize(("page", "heading"), [("serving.md", "### Fields"), ("serving.zh-CN.md", "### 字段")])
def test_the_page_about_the_endpoint_lists_every_field_as_it_is_decided(page: str, heading: str) -> None:
    text = (paths.ROOT / "docs" / page).read_text(encoding="utf-8").split(f"{heading}\n")[1].split("\n### ")[0]
    paragraphs = [set(re.findall(r"`(\w+)`", paragraph)) for paragraph in text.strip().split("\n\n")]
    intro, taken, left_out, refused, thinking = paragraphs
    fields = TAKEN[CHAT] | TAKEN[COMPLETION]
    assert intro - {"null"} == {"messages", "prompt"} and taken == fields - {"messages", "prompt"}
    assert left_out >= LEFT_OUT and left_out - LEFT_OUT <= set(ONLY_AS)
    assert left_out | refused >= set(ONLY_AS) and refused - {"tools"} <= set(ONLY_AS)
    assert thinking >= set(request_thinking.FIELDS)
