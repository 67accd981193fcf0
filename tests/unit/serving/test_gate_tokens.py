"""The gate's proof that answers end where they must; the real vLLM is asked in tests/e2e and tests/faults."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny
from support.edits import edit_json

from lockstep.artifacts import filenames
from lockstep.prompts import contract, template
from lockstep.serving import gate_tokens
from lockstep.serving.gate_findings import Findings
from lockstep.serving.probe import Server
from lockstep.settings.schema import Data


@pytest.mark.parametrize(
    ("ends", "says"), [({2}, None), (set(), "stop token 2 does not end"), ({2, 7}, "token 7 ends an answer")]
)
def test_stop_tokens_end_an_answer_and_what_answers_consist_of_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: set[int], says: str | None
) -> None:
    added = [
        {"id": 2, "special": True},
        {"id": 7, "special": False},
        {"id": 3, "special": True},
        {"id": 50, "special": False},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    agreed = {"conversations": [{"prompt_ids": [1]}], "stop_ids": [2]}
    within = gate_tokens.ordinary_tokens(tmp_path, agreed, [{"input_ids": [9, 9, 5, 4, 5, 2], "start": 2}], 50)
    assert within == [7, 5, 4]
    monkeypatch.setattr(
        Server,
        "complete",
        lambda self, model, prompt, allowed_token_ids, **_: {
            "finish_reason": "stop" if allowed_token_ids[0] in ends else "length"
        },
    )
    gate_tokens.check_stops(Server("http://127.0.0.1:9/v1", "s"), "r", agreed, within, found := Findings())
    assert found.report == {"ordinary_tokens": 3}
    assert (found.reasons == []) if says is None else (len(found.reasons) == 1 and says in found.reasons[0])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer, template and contract."""
    folder = tmp_path_factory.mktemp("adapter")
    tiny.tokenizer().save_pretrained(folder)
    chat = template.load(folder, tiny.CHATML)
    (folder / filenames.CONTRACT).write_text(json.dumps(contract.build(chat, Data(train_file="rows.jsonl"))))
    return folder


def a_word_in_the_template(folder: Path) -> None:
    (folder / filenames.CHAT_TEMPLATE).write_text(
        "{% if 'zebra' in messages[0]['content'] %}!{% endif %}" + tiny.CHATML
    )


def two_words_swapped(folder: Path) -> None:
    conversations = json.loads((folder / filenames.CONTRACT).read_text())["conversations"]
    used = {token for conversation in conversations for token in conversation["prompt_ids"]}

    def swap(tokenizer: dict) -> dict:
        words = tokenizer["model"]["vocab"]
        (first, one), (second, two) = [entry for entry in words.items() if entry[1] not in used][-2:]
        words |= {first: two, second: one}
        return tokenizer

    edit_json(folder / filenames.TOKENIZER, swap)


def other_digits(folder: Path) -> None:
    seven = {"type": "Replace", "pattern": {"String": "7"}, "content": "1"}
    edit_json(
        folder / filenames.TOKENIZER,
        lambda one: one | {"decoder": {"type": "Sequence", "decoders": [one["decoder"], seven]}},
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (a_word_in_the_template, "the chat template is another text than in training"),
        (two_words_swapped, "the tokenizer differs: tokens have other ids than in training"),
        (other_digits, "the tokenizer differs: ids become other texts than in training"),
    ],
)
@pytest.mark.parametrize("where", ["served", "adapter"])
def test_what_no_golden_conversation_shows_is_seen_in_the_files(
    adapter: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str, where: str
) -> None:
    folders = {name: Path(shutil.copytree(adapter, tmp_path / name)) for name in ("served", "adapter")}
    assert gate_tokens.foresee(folders["served"], folders["adapter"])["reasons"] == []
    spoil(folders[where])
    report = gate_tokens.foresee(folders["served"], folders["adapter"])
    assert report["token_mismatches"] == 0
    assert len(report["reasons"]) == 1 and report["reasons"][0].endswith(reason) and where in report["reasons"][0]


def test_thoughts_of_held_out_rows_are_asked_under_the_name_that_tokenize_knows(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's /tokenize leaves `reasoning_content` out: a right server would be refused."""
    chat = gate_tokens.template_of(adapter)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "c"},
        {"role": "user", "content": "d"},
    ]
    ids = chat.prompt_ids(turns)
    asked: list[dict] = []
    monkeypatch.setattr(Server, "ask", lambda self, path, body: asked.append(body) or {"tokens": ids})
    row = {"row": "f:1", "messages": turns, "tools": None, "input_ids": [*ids, 9], "start": len(ids)}
    gate_tokens.check_row_prompts(Server("http://127.0.0.1:9/v1", "s"), "r", chat, [row], found := Findings())
    assert found.report == {"row_prompts": 1, "row_prompt_mismatches": 0}
    assert asked[0]["messages"][1] == {"role": "assistant", "content": "b", "reasoning": "c"}
    assert "reasoning_content" in turns[1]


@pytest.mark.parametrize(
    ("ends", "named"),
    [
        (["own", "other"], None),
        (["other"], None),  # vLLM ends answers at the tokenizer's own end token whatever the files say
        (["own"], "lost_end_token"),
        (["own", "other", "word"], "extra_end_token"),
    ],
)
def test_the_ends_of_answers_are_read_in_the_files(
    adapter: Path, tmp_path: Path, ends: list[str], named: str | None
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    agreed = json.loads((folder / filenames.CONTRACT).read_text())
    own = agreed["special_ids"]["eos"]
    tokens = {"own": own, "other": next(token for token in (2, 3) if token != own), "word": 50}
    (folder / filenames.CONTRACT).write_text(json.dumps(agreed | {"stop_ids": [own, tokens["other"]]}))
    (folder / filenames.GENERATION_CONFIG).write_text(json.dumps({"eos_token_id": [tokens[end] for end in ends]}))
    assert gate_tokens.foresee(folder, folder)["named"] == named
