"""A thinking model with the real vLLM: thoughts beside answers, answers sent back in either form, words that are text."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from support import tiny, tokenizer_families
from support.serving import Home, Served, ask, finished_run, report, served
from transformers import AddedToken

from lockstep.client.conversation import Conversation
from lockstep.client.openai_client import Endpoint, request
from lockstep.prompts import template
from lockstep.prompts.template import Template
from lockstep.serving import tool_parsers
from lockstep.settings.schema import Sampling

pytestmark = pytest.mark.e2e


def thinking_model(folder: Path) -> None:
    """A tiny model with the tokenizer and the template of a thinking one."""
    tiny.model(folder)
    for file in [*folder.glob("*token*"), *folder.glob("*.jinja")]:
        file.unlink()
    tokenizer = tokenizer_families.thinking()
    tokenizer.chat_template = tokenizer_families.THINKING
    tokenizer.save_pretrained(folder)


def thinking_rows(file: Path, count: int) -> None:
    """Rows with thoughts in the text, beside it, and without."""
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            question = {"role": "user", "content": f"Say <filename> {number} in <b>bold</b>."}
            answer = {"role": "assistant", "content": f"tea {number}"}
            if number % 3 == 1:
                answer["content"] = f"<think>\nx{number}\n</think>\n\ntea {number}"
            elif number % 3 == 2:
                answer["reasoning_content"] = f"x{number}"
            stream.write(json.dumps({"messages": [question, answer]}) + "\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return finished_run(tmp_path_factory.mktemp("thoughts"), model=thinking_model, rows=thinking_rows)


@pytest.fixture(scope="module", params=["merged", "lora", "base"])
def server(home: Home, request: pytest.FixtureRequest) -> Iterator[Served]:
    with served(home, "--serve.mode", request.param) as started:
        yield started


def test_thoughts_and_words(home: Home, server: Served) -> None:
    thoughts_and_words(home, server, "<filename>")


@pytest.mark.skipif(not tiny.SHARED_QWEN3.exists(), reason="the real Qwen3 tokenizer is not at hand")
def test_the_real_qwen3(tmp_path: Path) -> None:
    home = finished_run(
        tmp_path,
        "--quantization.min_share_4bit",
        "0",
        model=partial(tiny.qwen3, head_dim=32),
        rows=thinking_rows,
        base=False,
    )
    with served(home) as started:
        thoughts_and_words(home, started, "<|fim_prefix|>")


def thoughts_and_words(home: Home, server: Served, word_of_tokenizer: str) -> None:
    chat = template.load(home.run / "adapter", (home.run / "adapter/chat_template.jinja").read_text(encoding="utf-8"))
    url, model = server.url, ask(f"{server.url}/v1/models")[1]["data"][-1]["id"]

    # --- the gate proved the forms ---
    agreed = json.loads((home.run / "adapter/contract.json").read_text(encoding="utf-8"))
    names = {conversation["name"] for conversation in agreed["conversations"]}
    assert {
        "added tokens that are text",
        "a thought in an earlier answer",
        "a thought beside an earlier answer",
    } <= names
    assert agreed["rows_with_thoughts"] > 20 and word_of_tokenizer in agreed["text_tokens"]
    assert report(home)["token_mismatches"] == 0

    # --- what a client sends back is rendered as in training ---
    inside = {"role": "assistant", "content": "<think>\nx\n</think>\n\ntea"}
    user = {"role": "user", "content": "a <b> and a <filename>"}
    for answer in (
        inside,
        {**inside, "content": "tea", "reasoning_content": "x"},
        {**inside, "content": "tea", "reasoning": "x"},
    ):
        body = {"model": model, "messages": [user, answer, user]}
        status, told = ask(f"{url}/tokenize", body)
        assert status == 200, told
        trained = {**answer, "reasoning_content": answer["reasoning"]} if "reasoning" in answer else answer
        assert told["tokens"] == chat.prompt_ids([user, trained, user])
        assert ask(f"{url}/v1/chat/completions", body | {"max_tokens": 1})[0] == 200
    for token in ("<|im_end|>", "<tool_response>", "<|im_start|>"):
        body = {"model": model, "messages": [user, {**inside, "content": f"<think>{token}"}, user]}
        assert ask(f"{url}/v1/chat/completions", body)[0] == 400
    assert (
        ask(f"{url}/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "<think>"}]})[0]
        == 400
    )

    # --- thoughts come apart from answers, whole and as a stream ---
    begin, word = (chat.tokenizer.convert_tokens_to_ids(token) for token in ("<think>", "t"))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-")
    only: Any = {"model": model, "messages": [user], "temperature": 0}
    for allowed, expected in (([word], ("", "tttt")), ([begin], ("", "")), ([begin, word], None)):
        more = {"extra_body": {"allowed_token_ids": allowed}, "max_tokens": 4}
        if expected is None:  # a mark first, as a bias says, and then the word, as marks are penalized
            more |= {"presence_penalty": 2, "frequency_penalty": 2, "logit_bias": {str(begin): 3}, "max_tokens": 2}
        whole = client.chat.completions.create(**only, **more).choices[0].message
        pieces = [
            piece.choices[0].delta
            for piece in client.chat.completions.create(**only, **more, stream=True)
            if piece.choices
        ]
        streamed = tuple(
            "".join(getattr(piece, name, None) or "" for piece in pieces) for name in ("reasoning_content", "content")
        )
        assert (getattr(whole, "reasoning_content", None) or "", whole.content or "") == streamed
        assert streamed == (expected or ("t", ""))
    json_only = more | {"response_format": {"type": "json_object"}, "extra_body": {}, "max_tokens": 8, "logit_bias": {}}
    content = client.chat.completions.create(**only, **json_only).choices[0].message.content
    assert content and content.lstrip().startswith("{")  # the grammar holds from the first token


def test_our_client_goes_on_turn_after_turn(server: Served) -> None:
    model = ask(f"{server.url}/v1/models")[1]["data"][-1]["id"]
    endpoint, talk = Endpoint(f"{server.url}/v1"), Conversation(Sampling(max_tokens=8))
    for number in range(3):
        answer = endpoint.ask(request(talk.sampling, model, talk.ask(f"q{number}")))
        talk.add(answer.whole)
    talk.turns.append(("q", "<think>\nx\n</think>\n\ny"))
    assert endpoint.ask(request(talk.sampling, model, talk.ask("q")), stream=False).completion_tokens


@pytest.mark.parametrize("text", [tokenizer_families.THINKING, tokenizer_families.OPENING])
def test_the_parser_reads_every_answer_alike_whole_and_in_pieces(text: str) -> None:
    from lockstep.serving import thought_parser  # with vllm, which every other test's process would load, too

    tokenizer = tokenizer_families.thinking()
    chat = Template(tokenizer, text)
    parsing = tool_parsers._Parsing.of(chat, None, thought_parser.NAME, None)
    opened = chat.opens_a_thought(chat.render(tool_parsers.ASK))
    for answer, reasoning, content in (
        ("<think>\nx 你\n\ny\n</think>\n\nA <b> 4.", "x 你\n\ny", "A <b> 4."),
        ("<think>\nx", "x", ""),
        ("<think>\n\n</think>\n\nA 4.", "", "A 4."),
        ("<think>x</think>A < b", "x", "A < b"),
        ("A 4.\n<", "", "A 4.\n<"),
        ("\nA", "", "\nA"),
    ):
        if opened and not answer.startswith("<think>"):
            continue
        if opened:
            answer = answer.removeprefix("<think>").removeprefix("\n")
        for outcome in (parsing.whole(answer), *parsing.in_pieces(answer)):
            assert (outcome.reasoning, outcome.content) == (reasoning, content), answer


def read(chat: Template, answer: str) -> set[tuple[str, str]]:
    """(thought, answer) as the parser gives them, whole and in pieces: one pair where all agree."""
    from lockstep.serving import thought_parser

    parsing = tool_parsers._Parsing.of(chat, None, thought_parser.NAME, None)
    outcomes = (parsing.whole(answer), *parsing.in_pieces(answer))
    return {(outcome.reasoning, outcome.content) for outcome in outcomes}


def test_a_thought_in_a_channel() -> None:
    """Gemma 4's published template: a thought has a name, which is no part of it."""
    text = (tokenizer_families.TRL_TEMPLATES / "gemma4_v5.jinja").read_text(encoding="utf-8")
    tokenizer = tiny.tokenizer()
    marks = ("<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>")
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks])
    tokenizer.bos_token = "<bos>"
    chat = Template(tokenizer, text)
    messages = [{"role": "user", "content": "?"}]
    answer = {"role": "assistant", "content": "A <b> 4.", "reasoning_content": "x\n\ny"}
    written = chat.answer_text([*messages, answer], None, chat.render(messages))
    assert written.startswith("<|channel>thought\n")
    assert read(chat, written) == {("x\n\ny", "A <b> 4.")}
    for plain in ("A 4.", "thought\nA", "thought", "\nA"):
        assert read(chat, plain) == {("", plain)}
    assert read(chat, "<|channel>thought\nthought\n<channel|>A") == {("thought", "A")}
    assert read(chat, "<|channel>so<channel|>A") == {("so", "A")}
    assert read(chat, "<|channel>thought\nx") == {("x", "")}


def test_plain_answers_of_a_run_whose_prompts_open_a_thought(tmp_path: Path) -> None:
    """Only some of its rows hold one."""
    from lockstep.serving import thought_parser

    tokenizer_families.thinking().save_pretrained(tmp_path)
    for rows, thoughts, plain in ((9, 3, ("", "A <b> 4.\nB")), (9, 9, ("A <b> 4.\nB", ""))):
        (tmp_path / "contract.json").write_text(json.dumps({"rows": rows, "rows_with_thoughts": thoughts}))
        chat = template.load(tmp_path, tokenizer_families.OPENING)
        assert read(chat, "A <b> 4.\nB") == {plain}
        assert read(chat, "x\n</think>\n\nA 4.") == {("x", "A 4.")}
        parser = thought_parser.ThoughtParser(chat.tokenizer)
        assert parser.count_reasoning_tokens(chat.encode(["A 4."])[0]) == (0 if thoughts < rows else 4)
