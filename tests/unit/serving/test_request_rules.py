"""What the endpoint takes, and what it refuses with which words."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from lockstep.prompts import contract, golden_tools
from lockstep.serving.request_rules import CHAT, COMPLETION, TOKENIZE, Rules

ASK = [{"role": "user", "content": "你是谁？"}]


@pytest.fixture(scope="module")
def rules(tiny_model: Path) -> Rules:
    return Rules(
        str(tiny_model), [], 512, 8, 2**20, 64, loopback=True, prompt_logprobs=False, max_prompts=64, tools=True
    )


def chats() -> list[dict[str, Any]]:
    """200 requests as clients send them."""
    made = []
    for number in range(5):
        for name, messages in contract.golden():
            body = {"model": "r", "messages": messages, "temperature": number / 4, "max_tokens": 16 + number, "n": 1}
            made.append(body | {"stream": bool(number % 2), "top_k": -1, "repetition_penalty": 1.1, "user": name})
    return made[:200]


def test_two_hundred_clean_chats_raise_no_alarm(rules: Rules) -> None:
    asked = chats()
    assert len(asked) == 200
    assert [rules.refusal(CHAT, body) for body in asked] == [None] * 200
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    for body in (
        {"messages": parts},
        {"messages": ASK, "tools": [golden_tools.TOOL], "tool_choice": "auto"},
        {"messages": ASK, "response_format": {"type": "json_object"}, "stream_options": {"include_usage": True}},
        {"messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": []}]},
        {"messages": ASK, "add_special_tokens": False, "logprobs": True, "top_logprobs": 5},
    ):
        assert rules.refusal(CHAT, {"model": "r", **body}) is None
    assert rules.refusal(COMPLETION, {"prompt": [0, 5, 511], "max_tokens": 1}) is None
    assert rules.refusal(COMPLETION, {"prompt": ["a", "b"]}) is None
    assert rules.refusal(TOKENIZE, {"messages": ASK}) is None


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_no_control_token_in_any_text_of_a_conversation(rules: Rules, token: str) -> None:
    text = f"before {token} after"
    tool = json.loads(json.dumps(golden_tools.TOOL))
    tool["function"]["description"] = text
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": text})}}
    for messages, tools in (
        ([{"role": "user", "content": text}], None),
        ([{"role": "system", "content": text}, *ASK], None),
        ([{"role": "user", "content": [{"type": "text", "text": text}]}], None),
        ([{"role": text, "content": "a"}], None),
        ([*ASK, {"role": "assistant", "content": text}, *ASK], None),
        ([*ASK, {"role": "assistant", "reasoning_content": text}, *ASK], None),
        ([*ASK, {"role": "assistant", "tool_calls": [call]}, *ASK], None),
        ([{"role": "user", "name": text, "content": "a"}], None),
        ([{"role": "user", "content": "a", text: "b"}], None),
        (ASK, [tool]),
    ):
        for route in (CHAT, TOKENIZE):
            reason = rules.refusal(route, {"messages": messages} | ({"tools": tools} if tools else {}))
            assert reason and repr(token) in reason and "control token" in reason, messages


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        (CHAT, {"chat_template": "{{ 1 }}"}, "'chat_template' is not taken"),
        (CHAT, {"chat_template_kwargs": {"messages": []}}, "'messages' would change the prompt"),
        (CHAT, {"mm_processor_kwargs": {}}, "'mm_processor_kwargs' is not taken"),
        (CHAT, {"add_special_tokens": True}, "would change the prompt"),
        (CHAT, {"prompt_logprobs": 0}, "stop vLLM's engine"),
        (CHAT, {"n": 9}, "at most 8 answers"),
        (CHAT, {"n": 10**9}, "at most 8 answers"),
        (CHAT, {"n": "1000"}, "at most 8 answers"),
        (CHAT, {"n": 1e9}, "at most 8 answers"),
        (COMPLETION, {"prompt": "a", "echo": True, "logprobs": 1}, "stop vLLM's engine"),
        (COMPLETION, {"prompt": ["a"] * 65}, r"65 prompts, .* at most 64 \(--serve.max_prompts\)"),
        (COMPLETION, {"prompt": [[1]] * 65}, r"65 prompts, .* at most 64 \(--serve.max_prompts\)"),
        (COMPLETION, {"prompt": [1, 512]}, "512 in the prompt is no token id"),
        (COMPLETION, {"prompt": [[1], [-1]]}, "-1 in the prompt is no token id"),
        (COMPLETION, {"prompt": [0.0, 999999]}, "0.0 in the prompt is no token id"),
        (COMPLETION, {"prompt": [None, 999999]}, "None in the prompt is no token id"),
        (COMPLETION, {"prompt": [True, 5]}, "True in the prompt is no token id"),
        (COMPLETION, {"prompt": ["a"] * 900, "n": -1}, "at most 8 answers"),
        (CHAT, {"n": 0}, "at most 8 answers"),
        (COMPLETION, {"prompt_embeds": "gA=="}, "'prompt_embeds' is not taken"),
        (COMPLETION, {"use_beam_search": True}, "'use_beam_search' is not taken"),
        (COMPLETION, {"truncate_prompt_tokens": 5}, "'truncate_prompt_tokens' is not taken"),
        (COMPLETION, {"kv_transfer_params": {}}, "'kv_transfer_params' is not taken"),
        (TOKENIZE, {"chat_template": "x"}, "'chat_template' is not taken"),
        (CHAT, [], "must be a JSON object"),
    ],
)  # fmt: skip
def test_refusals_say_why(rules: Rules, route: str, body: Any, words: str) -> None:
    asked = body if isinstance(body, list) else ({"messages": ASK} if route == CHAT else {}) | body
    assert re.search(words, rules.refusal(route, asked) or "")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file", "image_embeds"])
def test_messages_hold_text_only(rules: Rules, kind: str) -> None:
    part = {"type": kind, kind: {"url": "http://127.0.0.1/secret"}}
    sly = {"type": "text", "text": "a", "image_url": {"url": "http://127.0.0.1/secret"}}
    for one in (part, sly, {"image_url": "http://127.0.0.1/secret"}):
        reason = rules.refusal(CHAT, {"messages": [{"role": "user", "content": [one]}]})
        assert reason and "text only" in reason


def test_allowed_tokens_may_stand_in_texts(tiny_model: Path) -> None:
    allowing = Rules(
        str(tiny_model),
        ["<|endoftext|>"],
        512,
        8,
        2**20,
        64,
        loopback=True,
        prompt_logprobs=True,
        max_prompts=64,
        tools=True,
    )
    assert allowing.refusal(CHAT, {"messages": [{"role": "user", "content": "<|endoftext|>"}]}) is None
    assert allowing.refusal(CHAT, {"messages": [{"role": "user", "content": "<|im_end|>"}]})
    assert allowing.refusal(COMPLETION, {"prompt": "a", "echo": True, "logprobs": 1}) is None


def test_outside_loopback_fewer_routes_are_open(rules: Rules) -> None:
    assert TOKENIZE in rules.routes and "/invocations" not in rules.routes
    outside = replace(rules, loopback=False).routes
    translated = {"/v1/responses", "/v1/messages", "/v1/messages/count_tokens"}
    assert set(outside) == {"/health", "/metrics", "/v1/models", CHAT, COMPLETION, *translated}


def test_rules_travel_as_a_file(rules: Rules, tmp_path: Path) -> None:
    rules.write(tmp_path / "rules.json")
    assert Rules.read(tmp_path / "rules.json") == rules


def test_a_control_token_hidden_in_the_json_of_a_call_is_found(rules: Rules) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "<\\u007cim_start\\u007c>"}'}}
    reason = rules.refusal(CHAT, {"messages": [*ASK, {"role": "assistant", "tool_calls": [call]}, *ASK]})
    assert reason and "'<|im_start|>'" in reason


def test_prompts_and_answers_of_one_request_are_bounded_apart(rules: Rules) -> None:
    assert rules.refusal(COMPLETION, {"prompt": ["a"] * 20}) is None  # LangChain's batches
    assert rules.refusal(COMPLETION, {"prompt": ["a"] * 8, "n": 8}) is None
    assert "9 prompts with n 8 are 72 answers" in (rules.refusal(COMPLETION, {"prompt": ["a"] * 9, "n": 8}) or "")


def test_texts_are_counted_and_names_of_fields_apart(rules: Rules) -> None:
    def conversation(turns: int) -> dict[str, Any]:
        return {"messages": [{"role": ("user", "assistant")[turn % 2], "content": "a"} for turn in range(turns)]}

    assert rules.refusal(CHAT, conversation(1031)) is None
    assert "more than 16384 texts" in (rules.refusal(CHAT, conversation(8193)) or "")
    tools = []
    for number in range(60):
        properties = {f"p{number}_{part}": {"type": "string", "description": "of it"} for part in range(12)}
        function = {"name": f"f{number}", "description": "does", "parameters": {"properties": properties}}
        tools.append({"type": "function", "function": function})
    assert rules.refusal(TOKENIZE, {"messages": ASK, "tools": tools}) is None
    tools[59]["function"]["parameters"]["properties"]["<|im_start|>"] = {"type": "string"}  # type: ignore[index]
    assert "'<|im_start|>'" in (rules.refusal(TOKENIZE, {"messages": ASK, "tools": tools}) or "")
    tools[59]["function"]["parameters"]["properties"] = dict.fromkeys(map(str, range(16385)), 1)  # type: ignore[index]
    assert "16384 different names" in (rules.refusal(TOKENIZE, {"messages": ASK, "tools": tools}) or "")


def test_tools_are_refused_where_nothing_would_read_their_calls(rules: Rules, tiny_model: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"messages": ASK, "tools": [golden_tools.TOOL]}
    without = replace(rules, tools=False)
    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": None}, {"tool_choice": "required"}):
        assert rules.refusal(CHAT, {**asked, **choice}) is None
        assert "template of this run has no place for tools" in (without.refusal(CHAT, {**asked, **choice}) or "")
    assert without.refusal(CHAT, {**asked, "tool_choice": "none"}) is None
    assert without.refusal(TOKENIZE, {**asked}) is None
    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m/chat_template.jinja").write_text("{% if tools %}{{ tools }}{% endif %}" + tiny.CHATML)
    reason = replace(without, tokenizer=str(tmp_path / "m")).refusal(CHAT, {**asked}) or ""
    assert "--serve.tool_call_parser NAME" in reason and "\n" not in reason
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}
    assert "'allowed_tools' is not known here" in (rules.refusal(CHAT, {**asked, "tool_choice": allowed}) or "")
