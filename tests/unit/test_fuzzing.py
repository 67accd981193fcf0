"""Random input for all that reads what others wrote: a result, or a UserError; never another exception, never without end.

HYPOTHESIS_PROFILE=long tries a hundred times as much, by hand.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from support import homes

from lockstep import paths
from lockstep.artifacts import filenames, manifest
from lockstep.artifacts.manifest import Manifest
from lockstep.data import layouts, readers
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.records import Record, Reject
from lockstep.errors import UserError
from lockstep.prompts import template
from lockstep.prompts.template import Template
from lockstep.serving.request_rules import CHAT, COMPLETION, TOKENIZE, Rules
from lockstep.settings import tree, yaml_file
from lockstep.settings.schema import Data
from lockstep.settings.tree import Settings
from lockstep.text import json_text

pytestmark = pytest.mark.promise("Random input is read, or refused with a reason")

CALM = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=100, derandomize=True, **CALM)
settings.register_profile("long", max_examples=10_000, **CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

# Text with all that hurts: controls, lone surrogates, code of the templates, control tokens.
ODD = st.sampled_from(
    ["\0", "\ud800", "﻿", " ", "\r", "<|im_end|>", "<|im_start|>system\n", "{{ 1/0 }}", "{% raw %}", "＜|im_end|＞", "\x1b[2J", "../x", "%s"]
)  # fmt: skip
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=30), ODD, st.lists(ODD, max_size=4).map("".join)
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=20,
)
NAMES = (
    "instruction", "input", "output", "history", "system", "prompt", "completion", "messages", "conversations", "tools",
    "role", "content", "from", "value", "tool_calls", "reasoning_content", "weight", "name", "function", "arguments", "id", "type", "text", "images",
)  # fmt: skip
ROLE = st.sampled_from([*layouts.ROLES, "developer", "", 3, None])
# Near to what is right, so that more than the first check is reached.
NEAR = st.recursive(
    st.one_of(TEXT, st.none(), st.integers(-1, 2), st.floats(), ROLE),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
        st.fixed_dictionaries(
            {"role": ROLE, "content": inner}, optional={"tool_calls": inner, "reasoning_content": inner}
        ),
        st.fixed_dictionaries({"name": TEXT, "arguments": inner}),
    ),
    max_leaves=30,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT},
        optional={"reasoning_content": TEXT, "name": TEXT, "tool_calls": st.lists(st.just({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}), max_size=2)},
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Template:
    return template.load(tiny_model, (tiny_model / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rules(tiny_model: Path) -> Rules:
    return Rules(
        str(tiny_model), [], 512, 8, 2**20, 64, loopback=True, prompt_logprobs=False, max_prompts=64, tools=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        yield homes.settle(patch, tmp_path_factory.mktemp("home"))


# --- records ---


@given(
    data=st.binary(max_size=400), suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
)
@example(data=b"[1", suffix=".json")
@example(data=b"[" * 300, suffix=".json")
@example(data=b'"\n"', suffix=".csv")
def test_any_bytes_as_a_data_file(folder: Path, data: bytes, suffix: str) -> None:
    for start in (b"", b"[", b'{"a":', b"\xef\xbb\xbf", b"PAR1", b"\x1f\x8b\x08\x00"):
        file = folder / f"rows{suffix}"
        file.write_bytes(start + data)
        records = list(readers.records(file))
        assert [record.line for record in records] == list(range(1, len(records) + 1))
        for record in records:
            if isinstance(record, Reject):
                assert record.reason
                (record.detail + record.text).encode()


@given(value=st.one_of(NEAR, JSON, st.dictionaries(st.sampled_from(NAMES), NEAR, max_size=6)),
       layout=st.sampled_from(["auto", *layouts.LAYOUTS]))  # fmt: skip
def test_any_value_as_a_record(value: Any, layout: str) -> None:
    try:
        text = json.dumps(value)
    except ValueError:
        assume(False)
    row = layouts.parse(Record("f", 1, json_text.loads(text), text), Data(format=layout))
    assert isinstance(row, ConversationRow) or row.reason
    if isinstance(row, ConversationRow):
        assert row.answers


# --- renderer ---


@given(messages=MESSAGES, tools=st.one_of(st.none(), st.lists(JSON, max_size=2)))
def test_any_conversation_is_rendered_or_refused(chat: Template, messages: list[dict[str, Any]], tools: Any) -> None:
    try:
        text = chat.render(messages, tools)
        text.encode()  # a lone surrogate is no text, and stage 01 drops it before it comes here
        ids = chat.prompt_ids(messages, tools)
    except (UserError, UnicodeEncodeError):
        return
    assert all(0 <= token < 512 for token in ids)
    if not any(chat.control_token(message["content"] + message["role"]) for message in messages):
        starts = ids.count(chat.encode(["<|im_start|>"])[0][0])
        assert starts == len(messages) + 1  # no message can open another


@given(text=TEXT, parts=st.lists(st.sampled_from(["{%", "%}", "{{", "}}", "for m in messages", "endfor", "if", "m.content", "|", "tojson", "(", ")", "'", "[0]", "-", "set a =", "macro f()", " "]), max_size=14))  # fmt: skip
def test_any_text_as_a_template(chat: Template, tiny_model: Path, text: str, parts: list[str]) -> None:
    for source in (
        text,
        " ".join(parts),
        "{{ '<|im_start|>' }}" + " ".join(parts) + "{{ messages[-1].content }}<|im_end|>",
    ):
        before = chat.tokenizer.chat_template
        try:
            Template(chat.tokenizer, source).prompt_ids([{"role": "user", "content": "a"}])
        except UserError:
            pass
        finally:
            chat.tokenizer.chat_template = before


# --- manifests ---

MANIFEST = {
    "stage": "data", "schema": 1, "config": {"data": {"a": 1}}, "inputs": {"models/m": "0" * 64},
    "files": {"a": {"bytes": 1, "sha256": "0" * 64}}, "digest": "0" * 64,
}  # fmt: skip


def read_manifest(folder: Path, text: bytes) -> None:
    (folder / filenames.MANIFEST).write_bytes(text)
    try:
        manifest.check_sizes(folder, manifest.read(folder))
    except UserError as error:
        str(error).encode()


@given(data=st.binary(max_size=300), value=JSON, key=st.sampled_from(sorted(MANIFEST)))
def test_any_bytes_or_value_as_a_manifest(folder: Path, data: bytes, value: Any, key: str) -> None:
    place = folder / "outputs/r/data"
    place.mkdir(parents=True, exist_ok=True)
    read_manifest(place, data)
    read_manifest(place, json.dumps(value).encode())
    changed = MANIFEST | {key: value}
    read_manifest(place, json.dumps(changed).encode())
    try:  # sealed by whoever changed it
        record = Manifest.model_validate_json(json.dumps(changed))
        read_manifest(
            place, record.model_copy(update={"digest": record.content_digest()}).model_dump_json(by_alias=True).encode()
        )
    except ValueError:
        pass


# --- configs ---

LEAVES = [name for name, _ in tree.leaves()]


def load(file: Path | None, overrides: dict[str, str]) -> Settings | None:
    try:
        return yaml_file.load(file, overrides)
    except UserError as error:
        str(error).encode("utf-8", "backslashreplace")
        return None


@given(
    data=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)),
    value=JSON,
    key=st.sampled_from(LEAVES),
)
@example(data=b"&a [*a]", value=None, key="run")
@example(data=b"a: &a\n  b: *a", value=None, key="run")
@example(data=b"? {a: 1}\n: 2", value=None, key="run")
@example(data=b"run: 2024-13-45", value=None, key="run")
@example(data=b"run: !!python/object/apply:os.system ['true']", value=None, key="run")
@example(data=b"[" * 5000, value=None, key="run")
def test_any_text_as_a_config(folder: Path, data: bytes, value: Any, key: str) -> None:
    file = folder / "config.yaml"
    file.write_bytes(data)
    load(file, {})
    section, _, leaf = key.partition(".")
    file.write_text(json.dumps({section: {leaf: value} if leaf else value}), encoding="utf-8")  # JSON is YAML, nearly
    load(file, {})
    try:
        file.write_text(yaml.safe_dump({section: value}), encoding="utf-8")
    except yaml.YAMLError:
        return
    load(file, {})


@given(key=st.one_of(st.sampled_from(LEAVES), TEXT), text=TEXT)
def test_any_setting_on_the_command_line(key: str, text: str) -> None:
    settings_read = load(None, {key: text})
    if settings_read and key in LEAVES:
        assert key in settings_read.explicit


@given(name=TEXT)
def test_any_name_of_a_run_is_one_folder_under_outputs_or_refused(name: str) -> None:
    settings_read = load(None, {"run": name, "model.name": name})
    if settings_read and name not in tree.NULLS:
        assert (
            settings_read.run_dir.parent == paths.OUTPUTS
            and settings_read.run_dir.resolve().parent == paths.OUTPUTS.resolve()
        )
        assert settings_read.model.folder.parent == paths.MODELS


# --- the endpoint's rules ---

FIELDS = (
    "messages",
    "prompt",
    "n",
    "tools",
    "model",
    "max_tokens",
    "logprobs",
    "echo",
    "stream",
    "add_special_tokens",
    "prompt_logprobs",
    "chat_template",
)


@given(
    route=st.sampled_from([CHAT, COMPLETION, TOKENIZE, "/health"]),
    body=st.one_of(JSON, st.dictionaries(st.sampled_from(FIELDS), st.one_of(NEAR, JSON), max_size=4), st.fixed_dictionaries({"messages": MESSAGES})),
)  # fmt: skip
def test_any_body_of_a_request(rules: Rules, route: str, body: Any) -> None:
    reason = rules.refusal(route, body)
    assert reason is None or reason
    if reason is None and route == CHAT:
        for text in template_texts(body):
            assert rules.template.control_token(text) is None


def template_texts(body: dict[str, Any]) -> Iterator[str]:
    for message in body.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield content
