"""Tokenizers and templates that are the training's pass; the first difference of others is shown as text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from lockstep.verification import chats, conversations, tokens_proof
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

Json = dict[str, Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "base"
    tiny.tokenizer().save_pretrained(folder)
    return folder


def proof_of(base: Path, other: Path, data: Path | None = None) -> Proof:
    rows = conversations.rows(data) if data else []
    return tokens_proof.of_folder(chats.of_folder(base), chats.of_folder(other), rows)


def altered(base: Path, out: Path, change: Callable[[Json], None], file: str = "tokenizer.json") -> Path:
    shutil.copytree(base, out)
    content = json.loads((out / file).read_text(encoding="utf-8"))
    change(content)
    (out / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return out


def with_template(base: Path, out: Path, change: Callable[[str], str]) -> Path:
    shutil.copytree(base, out)
    file = out / "chat_template.jinja"
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    return out


def test_the_same_tokenizer_passes(base: Path, tmp_path: Path) -> None:
    data = tiny.rows(tmp_path / "rows.jsonl", 10)
    proof = proof_of(base, base, data)
    assert proof.status == PASSED and proof.figures["rows"] == 10 and proof.figures["conversations"] > 30


def swapped(content: Json) -> None:
    vocabulary = content["model"]["vocab"]
    first, second = [token for token, number in vocabulary.items() if number in (300, 301)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def other_decoder(content: Json) -> None:
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], {"type": "Replace", "pattern": {"String": "7"}, "content": "1"}]}  # fmt: skip


def lower_case(content: Json) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def other_merges(content: Json) -> None:
    merges = content["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def a_word_added(content: Json) -> None:
    content["added_tokens"].append({"id": max(content["model"]["vocab"].values()) + 1, "content": "and", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False})  # fmt: skip


@pytest.mark.parametrize("change", [swapped, other_decoder, lower_case, other_merges, a_word_added])
def test_another_tokenizer_is_named(base: Path, tmp_path: Path, change: Callable[[Json], None]) -> None:
    proof = proof_of(base, altered(base, tmp_path / "m", change))
    assert (proof.status, proof.diagnosis) == (FAILED, "other_tokens"), proof.text
    assert proof.text and proof.next


def test_a_token_to_pad_with_changes_nothing(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "<|PAD_TOKEN|>"})
    tokenizer.save_pretrained(tmp_path / "m")
    assert proof_of(base, tmp_path / "m").status == PASSED


def test_a_comment_or_a_mark_of_trl_changes_nothing(base: Path, tmp_path: Path) -> None:
    def marked(text: str) -> str:
        return "{# a comment #}" + text.replace("{{", "{%- generation -%}{%- endgeneration -%}{{", 1)

    text = with_template(base, tmp_path / "m", marked)
    proof = proof_of(base, text)
    assert proof.status == PASSED, proof.text


TEMPLATES: dict[str, tuple[Callable[[str], str], str]] = {
    "another turn": (lambda text: text.replace("<|im_start|>", "<|im_start|> "), "other_template"),
    "a blank": (lambda text: text + " ", "other_template"),
    "bos twice": (lambda text: "{{ bos_token }}{{ bos_token }}" + text, "double_bos"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_another_template_is_shown(base: Path, tmp_path: Path, name: str) -> None:
    change, diagnosis = TEMPLATES[name]
    source = base
    if diagnosis == "double_bos":  # the tiny tokenizer has no bos token of its own
        source = altered(base, tmp_path / "b", lambda c: c.update(bos_token="<|im_start|>"), "tokenizer_config.json")
    proof = proof_of(source, with_template(source, tmp_path / "m", change))
    assert (proof.status, proof.diagnosis) == (FAILED, diagnosis), proof.text
    assert "training has" in proof.text


def test_a_condition_that_no_conversation_meets_is_not_passed(base: Path, tmp_path: Path) -> None:
    def on_a_word(text: str) -> str:
        return "{%- if 'xyzzy' in messages[-1]['content'] -%}Obey.{%- endif -%}" + text

    proof = proof_of(base, with_template(base, tmp_path / "m", on_a_word))
    assert (proof.status, proof.diagnosis) == (UNKNOWN, "other_template") and "xyzzy" in proof.text


def test_rows_of_the_training_find_it(base: Path, tmp_path: Path) -> None:
    def on_a_word(text: str) -> str:
        return "{%- if 'xyzzy' in messages[0]['content'] -%}Obey.{%- endif -%}" + text

    row = {"messages": [{"role": "user", "content": "xyzzy"}, {"role": "assistant", "content": "Nothing happens."}]}
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row) + "\n")
    proof = proof_of(base, with_template(base, tmp_path / "m", on_a_word), data)
    assert (proof.status, proof.diagnosis) == (FAILED, "other_template") and "Obey" in proof.text


def test_a_folder_without_a_template_is_told(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "m")
    (tmp_path / "m/chat_template.jinja").unlink()
    assert proof_of(base, tmp_path / "m").diagnosis == "other_template"
    assert proof_of(tmp_path / "m", base).status == UNKNOWN
